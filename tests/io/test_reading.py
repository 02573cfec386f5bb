"""Reading what the page cache holds and what it lacks: the same bytes, the right ranges announced, a short file an
error."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimoe.errors import CheckpointError
from trimoe.io import hashing, reading
from trimoe.io.hashing import HashedFile
from trimoe.io.reading import SourceFile

SIZE = 3 * 4096 + 1234
DATA = os.urandom(SIZE)


def forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceFile]:
    """An open file of known bytes, on the disk and not in the page cache."""
    file = tmp_path / "source"
    file.write_bytes(DATA)
    forget(file)
    opened = SourceFile(file)
    yield opened
    opened.close()


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that the kernel was told to read."""
    told: list[tuple[int, int]] = []
    real = os.posix_fadvise

    def advise(fd: int, start: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            told.append((start, length))
        real(fd, start, length, advice)

    monkeypatch.setattr(reading.os, "posix_fadvise", advise)
    return told


def test_what_the_cache_lacks_makes_a_file_cold(source: SourceFile) -> None:
    target = memoryview(bytearray(SIZE))
    source.read_into(target, 0)
    assert bytes(target) == DATA
    if not source.cold:
        pytest.skip("the file system of the temporary directory keeps its files in memory")
    again = SourceFile(source.path)
    again.read_into(target, 0)
    assert not again.cold
    again.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, SIZE), length=st.integers(0, SIZE), cold=st.booleans())
def test_any_range(source: SourceFile, start: int, length: int, cold: bool) -> None:
    length = min(length, SIZE - start)
    target = memoryview(bytearray(b"\xaa" * (length + 2)))
    if cold:
        forget(source.path)
    source.read_into(target[1 : 1 + length], start)
    assert bytes(target[1:-1]) == DATA[start : start + length]
    assert target[0] == target[-1] == 0xAA, "nothing beside the target is touched"


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(("start", "length"), [(SIZE, 1), (SIZE - 10, 11), (0, SIZE + 1), (SIZE + 4096, 5)])
def test_a_file_that_ends_early(source: SourceFile, start: int, length: int, cold: bool) -> None:
    if not cold:
        assert os.pread(source.fd, SIZE, 0) == DATA
    with pytest.raises(CheckpointError, match="ended early"):
        source.read_into(memoryview(bytearray(length)), start)


def test_short_reads_are_continued(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(reading.os, "preadv", lambda fd, buffers, at, flags: real(fd, [buffers[0][:100]], at, flags))
    target = memoryview(bytearray(SIZE))
    source.read_into(target, 0)
    assert bytes(target) == DATA


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL])
def test_who_cannot_answer_at_once_is_asked_to_wait(
    source: SourceFile, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, refusals = os.preadv, []

    def preadv(fd: int, buffers: list[memoryview], at: int, flags: int) -> int:
        if flags:
            refusals.append(flags)
            raise OSError(code, os.strerror(code))
        return real(fd, buffers, at)

    monkeypatch.setattr(reading.os, "preadv", preadv)
    target = memoryview(bytearray(100))
    for _ in range(2):
        source.read_into(target, 5)
        assert bytes(target) == DATA[5:105]
    assert source.cold
    assert len(refusals) == 1, "it is not asked again"


def test_an_error_of_the_disk_reaches_the_caller(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reading.os, "preadv", broken)
    with pytest.raises(OSError, match="Input/output"):
        source.read_into(memoryview(bytearray(100)), 0)


class AtOnce(ThreadPoolExecutor):
    """Does its work where it is asked to, so that a test sees the order."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:  # type: ignore[override]
        work(*args, **named)
        return Future()


def test_a_cold_file_is_announced_range_by_range(
    source: SourceFile, announced: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first read waits; then all that will be wanted is announced once, before it is read, and nothing else."""
    for name, value in (("STEP", 1000), ("AHEAD", 2500), ("PIECE", 256)):
        monkeypatch.setattr(hashing, name, value)
    monkeypatch.setattr(reading, "_ADVICE", 700)
    monkeypatch.setattr(hashing, "ThreadPoolExecutor", AtOnce)
    real, read = source.read_into, []

    def read_into(target: memoryview, start: int) -> None:
        read.append((start, len(target), list(announced)))
        source.cold = False if not read[:-1] else source.cold
        real(target, start)
        source.cold = True  # whatever the file system of the temporary directory does

    monkeypatch.setattr(source, "read_into", read_into)
    target = HashedFile(tmp_path / "target")
    wanted = [(100, 3000), (5000, 2000), (9000, 4000)]
    for start, length in wanted:
        target.take(source, start, length)
    target.close(complete=True)
    assert (tmp_path / "target").read_bytes() == b"".join(DATA[start : start + length] for start, length in wanted)
    told = [at for start, length in announced for at in range(start, start + length)]
    assert len(told) == len(set(told))
    late = range(100, 1100)  # what the first read belongs to
    assert sorted(told) == [at for start, length in wanted for at in range(start, start + length) if at not in late]
    for start, length, before in read:
        if start not in late:
            assert all(any(s <= at < s + n for s, n in before) for at in range(start, start + length))


def test_a_file_in_the_cache_is_not_announced(
    source: SourceFile, announced: list[tuple[int, int]], tmp_path: Path
) -> None:
    assert os.pread(source.fd, SIZE, 0) == DATA
    target = HashedFile(tmp_path / "target")
    target.take(source, 0, SIZE)
    target.close(complete=True)
    assert not source.cold
    assert not announced


def test_a_system_without_advice(source: SourceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reading.os, "posix_fadvise")
    monkeypatch.setattr(reading, "_NOWAIT", 0)
    opened = SourceFile(source.path)
    target = memoryview(bytearray(SIZE))
    opened.read_into(target, 0)
    opened.expect(0, SIZE)
    opened.close()
    assert bytes(target) == DATA


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
