"""Reading around the page cache and through it: the same bytes, every fallback visible, a short file an error."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimoe.cut import reading
from trimoe.cut.reading import SourceFile
from trimoe.errors import CheckpointError

SIZE = 3 * 4096 + 1234
DATA = os.urandom(SIZE)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceFile]:
    """An open file of known bytes, written to the disk and dropped from the page cache."""
    file = tmp_path / "source"
    file.write_bytes(DATA)
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    opened = SourceFile(file)
    yield opened
    opened.close()


def absent(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cache hold nothing, whatever else touches the file."""
    if source._cache is None or source._cache.all:
        pytest.skip("the file system of the temporary directory has no reads around the page cache")
    monkeypatch.setattr(source._cache, "holds", lambda start, length: False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, SIZE), length=st.integers(0, SIZE), direct=st.booleans())
def test_any_range_by_both_ways(source: SourceFile, start: int, length: int, direct: bool) -> None:
    length = min(length, SIZE - start)
    target = memoryview(bytearray(b"\xaa" * (length + 2)))
    with pytest.MonkeyPatch.context() as patch:
        if direct:
            absent(source, patch)
        elif source._cache is not None:
            patch.setattr(source._cache, "holds", lambda start, length: True)
        source.methods.clear()
        source.read_into(target[1 : 1 + length], start)
    assert bytes(target[1:-1]) == DATA[start : start + length]
    assert target[0] == target[-1] == 0xAA, "nothing beside the target is touched"
    assert source.methods == {"direct reads, hashed" if direct else "read/write, hashed"}


def test_what_the_cache_holds_is_seen(source: SourceFile) -> None:
    if source._cache is None or source._cache.all:
        pytest.skip("the file system of the temporary directory has no reads around the page cache")
    whole = memoryview(bytearray(SIZE))
    source.read_into(whole, 0)
    assert source.methods == {"direct reads, hashed"}
    assert not source._cache.holds(0, SIZE), "such reads leave the cache alone"
    assert os.pread(source.fd, SIZE, 0) == DATA
    assert source._cache.holds(0, SIZE)
    source.read_into(whole, 0)
    assert source.methods == {"direct reads, hashed", "read/write, hashed"}


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("start", "length"), [(SIZE, 1), (SIZE - 10, 11), (0, SIZE + 1), (SIZE + 4096, 5)])
def test_a_file_that_ends_early(
    source: SourceFile, monkeypatch: pytest.MonkeyPatch, start: int, length: int, direct: bool
) -> None:
    if direct:
        absent(source, monkeypatch)
    with pytest.raises(CheckpointError, match="ended early"):
        source.read_into(memoryview(bytearray(length)), start)


def test_short_direct_reads_are_continued(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(source, monkeypatch)
    real = os.preadv
    monkeypatch.setattr(reading.os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:4096]], at))
    target = memoryview(bytearray(SIZE))
    source.read_into(target, 0)
    assert bytes(target) == DATA


def test_refused_direct_reads_fall_back_for_good(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(source, monkeypatch)
    monkeypatch.undo()
    calls = []

    def refused(*args: object) -> None:
        calls.append(args)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(source, "_read_direct", refused)
    target = memoryview(bytearray(100))
    for _ in range(2):
        source.read_into(target, 5)
        assert bytes(target) == DATA[5:105]
    assert len(calls) == 1
    assert source.methods == {"read/write, hashed"}


def test_an_error_of_the_disk_is_not_a_fallback(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(source, monkeypatch)

    def broken(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(source, "_read_direct", broken)
    with pytest.raises(OSError, match="Input/output"):
        source.read_into(memoryview(bytearray(100)), 0)


def test_a_system_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reading.os, "O_DIRECT", raising=False)
    (tmp_path / "file").write_bytes(DATA)
    opened = SourceFile(tmp_path / "file")
    target = memoryview(bytearray(SIZE))
    opened.read_into(target, 0)
    opened.close()
    assert bytes(target) == DATA
    assert opened.methods == {"read/write, hashed"}


def test_a_change_is_noticed(source: SourceFile) -> None:
    source.unchanged()
    with source.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="was modified"):
        source.unchanged()


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    opened = SourceFile(tmp_path / "empty")
    opened.read_into(memoryview(bytearray(0)), 0)
    with pytest.raises(CheckpointError, match="ended early"):
        opened.read_into(memoryview(bytearray(1)), 0)
    opened.close()
