"""Source of Hugging Face data sets, read with `datasets`: a local folder, or a hub id pinned to a commit."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from trimoe.calibrate.text.multipl_e import refuse_name
from trimoe.calibrate.text.records import Fields, Record
from trimoe.calibrate.text.sources.base import BaseSource, SourceText
from trimoe.calibrate.text.sources.local import Only, wanted
from trimoe.errors import CalibrationError, MissingPrerequisite
from trimoe.io.hub import offline_if_unreachable, unreachable
from trimoe.io.paths import Place

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class DatasetSource(BaseSource, frozen=True, kw_only=True, tag="dataset"):
    """A data set that `datasets` can read.

    `path`: a folder made by `save_to_disk`, or a folder of Parquet or JSONL files (as `hf download` makes it); read
    without a network. `id`: a data set of the hub at one commit, downloaded once into the cache of `datasets`.
    """

    path: Path | None = None
    """A local folder, relative to the set file."""
    id: str | None = None
    """OWNER/NAME on the hub."""
    revision: str | None = None
    """Commit of `id`, 40 hexadecimal digits: a branch moves, and the set with it."""
    config: str | None = None
    """Configuration of the data set, if it has several."""
    split: str = "train"
    """Which split."""
    fields: Fields = Fields(text="text")
    """Which columns make the document."""
    only: Only = msgspec.field(default_factory=dict)
    """Take only records whose columns have these values."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.id is None):
            raise ValueError("give exactly one of path, id")
        if self.id is not None and not _ID.fullmatch(self.id):
            raise ValueError(f"id {self.id!r} is not OWNER/NAME")
        if self.id is not None and not _COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                "a hub id needs revision: the 40 hexadecimal digits of a commit (hub page, Files, History)"
            )
        if self.path is not None and self.revision is not None:
            raise ValueError("revision belongs to id, not to path")

    def resolve(self, place: Place) -> "DatasetSource":
        """See `BaseSource.resolve`."""
        return self if self.path is None else msgspec.structs.replace(self, path=place(self.path))

    @property
    def label(self) -> str:
        """Kind, name and commit."""
        if self.path is not None:
            return f"dataset {self.path.name}"
        return f"dataset {self.id}@{(self.revision or '')[:12]}"

    def describe(self) -> dict[str, Any]:
        """See `BaseSource.describe`."""
        return {**super().describe(), "config": self.config, "split": self.split, "revision": self.revision}

    def _items(self) -> Iterator[SourceText]:
        refuse_name(self.id or str(self.path and self.path.name), f"source {self.label}")
        for number, row in enumerate(self._rows()):
            record = Record(f"row {number} of {self.label}", number, dict(row))
            if wanted(record, self.only):
                yield self.from_record(record, self.fields)

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError as exc:
            raise MissingPrerequisite(
                f"source {self.label} needs the package datasets", actual=str(exc), remedy="pip install 'trimoe[data]'"
            ) from exc
        datasets.disable_progress_bars()
        try:
            yield from self._open(datasets)
        # `datasets` raises many kinds of error; all of these are caused by the folder or id that was given.
        except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as exc:
            raise self._explain(exc) from exc

    def _open(self, datasets: Any) -> Any:
        if self.path is None:
            with offline_if_unreachable():
                return datasets.load_dataset(self.id, self.config, split=self.split, revision=self.revision)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is not a folder")
        if (self.path / "dataset_dict.json").exists() or (self.path / "state.json").exists():
            loaded = datasets.load_from_disk(str(self.path))
            if not isinstance(loaded, dict):
                return loaded
            if self.split not in loaded:
                raise ValueError(f"no split {self.split}; there are {', '.join(loaded)}")
            return loaded[self.split]
        # Streaming reads the files in place; otherwise `datasets` would convert a copy of them into its cache.
        return datasets.load_dataset(str(self.path), self.config, split=self.split, streaming=True)

    def _explain(self, exc: Exception) -> Exception:
        if self.id is not None and (isinstance(exc, ConnectionError) or unreachable() is not None):
            return MissingPrerequisite(
                f"data set {self.id} cannot be downloaded",
                expected="a network, or the data set in the local cache",
                actual=str(exc)[:200],
                remedy=f"on a machine with a network: hf download {self.id} --repo-type dataset --revision "
                f"{self.revision} --local-dir DIR; then write path: DIR instead of id and revision",
            )
        if self.id is not None:
            return CalibrationError(
                f"data set {self.id} cannot be used",
                expected="an existing data set with this revision, config and split",
                actual=str(exc)[:300],
                remedy="correct them; a gated data set needs `hf auth login` first",
            )
        return CalibrationError(
            f"data set folder {self.path} cannot be used",
            actual=str(exc)[:300],
            expected="a folder made by save_to_disk, or one of Parquet or JSONL files, with this config and split",
            remedy="correct path, config or split",
        )
