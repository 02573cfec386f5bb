"""Reads the rows of a data set from local files, or from the hub at a pinned revision.

Invariants: rows keep the order of their source. Nothing is downloaded if a folder is given.
Not guaranteed: that the hub still has the revision and grants this account access.
"""

import csv
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from trimoe.bench.spec import Dataset
from trimoe.errors import BenchError, MissingPrerequisite
from trimoe.io import expand
from trimoe.io.expand import lines, opened_text
from trimoe.io.hub import offline_if_unreachable, out_of_reach

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
    """Rows of a .jsonl, .json (a list or one object) or .csv file, optionally gzipped. Only a newline ends a line.

    U+2028 is legal inside a JSON string, but `str.splitlines` would cut the row there.
    """
    return (row for _, row in located_rows(path))


def located_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The same with the place of each row in its file: `line 3`, or `item 3` of a JSON list."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        with opened_text(path) as handle:
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
        for number, fields in enumerate(csv.DictReader(lines(handle)), 1):
            yield f"row {number}", fields
    elif kind == ".json":
        text = handle.read(expand.LARGEST_LINE + 1)
        if len(text) > expand.LARGEST_LINE:
            raise ValueError(f"more than {expand.LARGEST_LINE} characters; a .jsonl file has no limit on its whole")
        whole = json.loads(text)
        for number, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
            yield f"item {number}", row
    else:
        for number, line in enumerate(lines(handle), 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as exc:
                    raise ValueError(f"line {number}: {exc}") from exc


# ---------------------------------------------------------------- the hub


def _from_hub(part: Dataset) -> Iterator[Row]:
    if part.hub and (reason := out_of_reach(part.hub)) is not None:  # before the slow imports
        raise _cannot_be_fetched(part, reason)
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
        with offline_if_unreachable() as offline:
            if part.files:
                paths = [
                    hf_hub_download(part.hub, file, repo_type="dataset", revision=part.revision) for file in part.files
                ]
            else:
                loaded = datasets.load_dataset(part.hub, part.config, split=part.split, revision=part.revision)
    except (OSError, ValueError, RuntimeError) as exc:  # the hub's errors are subclasses of these
        raise _cannot_be_fetched(part, offline or str(exc).strip().split("\n")[0][:200]) from exc
    if part.files:
        for path in paths:
            yield from read_file(Path(path))
    else:
        yield from loaded


def _cannot_be_fetched(part: Dataset, reason: str) -> MissingPrerequisite:
    return MissingPrerequisite(
        f"data set {part.hub} cannot be fetched",
        expected=f"revision {(part.revision or '')[:12]}" + (", which needs an accepted licence" if part.gated else ""),
        actual=reason,
        remedy=(
            "accept its terms on the hub and set HF_TOKEN, or give local files by --data"
            if part.gated
            else "connect to the hub, or give local files by --data"
        ),
    )
