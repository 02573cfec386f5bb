"""Compressed files, devices and endless lines are read under limits, wherever a user's file is read."""

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from trimoe.bench.code.evalplus import problems
from trimoe.bench.row_sources import read_file
from trimoe.calibrate.stats.reference import import_reference
from trimoe.calibrate.text.records import read_lines, read_text
from trimoe.errors import BadInput
from trimoe.io import expand

READERS: dict[str, Callable[[Path], object]] = {
    "rows of a bench": lambda path: list(read_file(path)),
    "lines of a set": lambda path: list(read_lines(path)),
    "a text of a set": read_text,
    "problems of evalplus": problems,
    "statistics": import_reference,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_expands_without_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as handle:
        handle.write('{"task_id": 1}\n' * 20_000)
    monkeypatch.setattr(expand, "LARGEST", 1 << 16)
    with pytest.raises(BadInput, match="expands to more than"):
        READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_a_device_or_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for path in (Path("/dev/zero"), pipe):
        with pytest.raises(BadInput, match="not a regular file"):
            READERS[name](path)


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x" * 200)
    monkeypatch.setattr(expand, "LARGEST_LINE", 100)
    with pytest.raises(BadInput, match="more than 100 characters"):
        list(read_lines(tmp_path / "a.txt"))


def test_compressed_bytes_have_a_limit_and_an_end() -> None:
    data = zlib.compress(b"x" * 5000)
    assert expand.inflated(data) == b"x" * 5000
    assert expand.inflated(data, 5000) == b"x" * 5000
    with pytest.raises(expand.TooLarge):
        expand.inflated(data, 4999)
    with pytest.raises(zlib.error):
        expand.inflated(data[:-3])
    with pytest.raises(zlib.error):
        expand.inflated(b"x")


def test_lines_end_with_a_newline_only(tmp_path: Path) -> None:
    text = "a\u2028b\r\nc\rd\n\ne"
    for path in (tmp_path / "a.txt", tmp_path / "a.txt.gz"):
        data = text.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        with expand.opened_text(path) as handle:
            assert list(expand.lines(handle)) == ["a\u2028b\r\n", "c\rd\n", "\n", "e"]
