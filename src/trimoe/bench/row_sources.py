"""Reads the rows of a data set from local files, or from the hub at a pinned revision.

Invariants: rows keep the order of their source. Nothing is downloaded if a folder is given.
Not guaranteed: that the hub still has the revision and grants this account access.
"""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from trimoe.bench.spec import Dataset
from trimoe.errors import BenchError, MissingPrerequisite

Row = Mapping[str, Any]


def iter_rows(part: Dataset, data: Path | None, folder: Path | None = None) -> Iterator[Row]:
    """Rows of one data set in order, filtered by `where`. They come from below `data`, else from the hub, or from below
    `folder` for a data set that is not on the hub."""
    data = folder if data is None and not part.hub else data
    if data is None and not part.hub:
        raise MissingPrerequisite(
            f"{part.local} is not on the hub", expected="a folder that has it", remedy="give the folder by --data"
        )
    source = _from_folder(part, data) if data is not None else _from_hub(part)
    for row in source:
        try:
            wanted = all(low <= int(row[key]) <= high for key, (low, high) in part.where.items())
        except (KeyError, TypeError, ValueError) as exc:
            raise BenchError(
                f"a row of {part.hub or part.local} cannot be chosen by `where`",
                expected=f"whole numbers in {', '.join(part.where)}",
                actual=f"{type(exc).__name__}: {exc}",
                remedy="correct `where`, or the data",
            ) from exc
        if wanted:
            yield row


# ---------------------------------------------------------------- local files


def _from_folder(part: Dataset, data: Path) -> Iterator[Row]:
    paths = [data / part.local / file for file in part.files] if part.files else [data / part.local]
    for path in paths:
        if not path.is_file():
            raise BenchError(
                f"{path} not found",
                expected=f"{part.hub or 'the data set'} as a local file ({path.relative_to(data)} below --data)",
                remedy="copy it there, or leave out --data to use the hub" if part.hub else "copy it there",
            )
    for path in paths:
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .json (a list) or .csv file, optionally gzipped. Only a newline ends a line.

    U+2028 is legal inside a JSON string, but `str.splitlines` would cut the row there.
    """
    with _opened(path) as handle:
        try:
            kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
            if kind == ".csv":
                rows: Iterable[Any] = csv.DictReader(handle)
            elif kind == ".json":
                rows = json.load(handle)
            else:
                rows = (json.loads(line) for line in handle if line.strip())
            for row in rows:
                if not isinstance(row, Mapping):
                    raise ValueError(f"a row is not an object: {row!r}"[:200])
                yield row
        except (OSError, EOFError, ValueError, csv.Error) as exc:
            raise BenchError(
                f"{path} is not readable as {kind or 'JSON lines'}",
                expected="one row per line, or a list of rows",
                actual=str(exc),
                remedy="check the file and its suffix",
            ) from exc


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8", newline="")


# ---------------------------------------------------------------- the hub


def _from_hub(part: Dataset) -> Iterator[Row]:
    try:
        import datasets
        from huggingface_hub import hf_hub_download
    except ImportError as exc:
        raise MissingPrerequisite(
            "data sets from the hub need the package datasets",
            actual=str(exc),
            remedy="pip install 'trimoe[eval]', or give local files by --data",
        ) from exc
    try:
        if part.files:
            paths = [
                hf_hub_download(part.hub, file, repo_type="dataset", revision=part.revision) for file in part.files
            ]
        else:
            loaded = datasets.load_dataset(part.hub, part.config, split=part.split, revision=part.revision)
    except (OSError, ValueError, RuntimeError) as exc:  # the hub's errors are subclasses of these
        raise MissingPrerequisite(
            f"data set {part.hub} cannot be fetched",
            expected=f"revision {(part.revision or '')[:12]}"
            + (", which needs an accepted licence" if part.gated else ""),
            actual=str(exc).strip().split("\n")[0][:200],
            remedy=(
                "accept its terms on the hub and set HF_TOKEN, or give local files by --data"
                if part.gated
                else "connect to the hub, or give local files by --data"
            ),
        ) from exc
    if part.files:
        for path in paths:
            yield from read_file(Path(path))
    else:
        yield from loaded
