"""Reads the rows of a data set from local files, or from the hub at a pinned revision.

Invariants: rows keep the order of their source. Nothing is downloaded if a folder is given.
Not guaranteed: that the hub still has the revision and grants this account access.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TextIO, cast

from trimoe.bench.spec import Dataset
from trimoe.errors import BenchError, MissingPrerequisite

Row = Mapping[str, Any]
LARGEST_EXPANDED = 4 << 30  # bytes of text that a compressed file may hold
LARGEST_ROW = (
    512 << 20
)  # characters of one line, or of a whole .json file; a row of LiveCodeBench has up to 100 million


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
    """Rows of a .jsonl, .json (a list or one object) or .csv file, optionally gzipped. Only a newline ends a line.

    U+2028 is legal inside a JSON string, but `str.splitlines` would cut the row there.
    """
    return (row for _, row in located_rows(path))


def located_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The same with the place of each row in its file: `line 3`, or `item 3` of a JSON list."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        with _opened(path) as handle:
            for at, row in _parsed(handle, kind):
                if not isinstance(row, Mapping):
                    raise ValueError(f"{at} is not an object: {row!r}"[:200])
                yield at, row
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as exc:
        raise BenchError(
            f"{path} is not readable as {kind or 'JSON lines'}",
            expected="one row per line, or a list of rows",
            actual=str(exc),
            remedy="check the file and its suffix",
        ) from exc


def _parsed(handle: TextIO, kind: str) -> Iterator[tuple[str, Any]]:
    if kind == ".csv":
        for number, fields in enumerate(csv.DictReader(_lines(handle)), 1):
            yield f"row {number}", fields
    elif kind == ".json":
        text = handle.read(LARGEST_ROW + 1)
        if len(text) > LARGEST_ROW:
            raise ValueError(f"more than {LARGEST_ROW} characters; a .jsonl file has no such limit on its whole")
        whole = json.loads(text)
        for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
            yield f"item {number}", row
    else:
        for number, line in enumerate(_lines(handle), 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as exc:
                    raise ValueError(f"line {number}: {exc}") from exc


def _lines(handle: TextIO) -> Iterator[str]:
    """The lines of a file. `ValueError` for one without an end in sight."""
    number = 0
    while line := handle.readline(LARGEST_ROW + 1):
        number += 1
        if len(line) > LARGEST_ROW:
            raise ValueError(f"line {number} has more than {LARGEST_ROW} characters")
        yield line


class _Bounded(io.RawIOBase):
    """The bytes of a stream, refused beyond a limit: a few kilobytes of gzip can stand for terabytes."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self._source, self._path, self._left = source, path, LARGEST_EXPANDED

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), 1 << 16))
        self._left -= len(data)
        if self._left < 0:
            raise BenchError(
                f"{self._path} expands to more than {LARGEST_EXPANDED >> 20} MiB",
                expected=f"at most {LARGEST_EXPANDED >> 20} MiB of text in a gzipped file",
                actual="more",
                remedy="decompress it first (gunzip) if it is really that large, and give the .jsonl file",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        packed = _Bounded(cast(IO[bytes], gzip.GzipFile(path)), path)
        return io.TextIOWrapper(io.BufferedReader(packed), encoding="utf-8", newline="")
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
