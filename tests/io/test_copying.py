"""The copier: the right bytes by every way, hashed as the file is, resumed only from what verifies."""

import errno
import os
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimoe.io import copying, hashing
from trimoe.io.copying import Copier
from trimoe.io.hashing import Marks

Ranges = list[tuple[int, int]]
SIZE = 4000
DATA = bytes(i * 7 % 251 for i in range(SIZE))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, marks and gathering on the scale of the test data."""
    monkeypatch.setattr(hashing, "PIECE", 16)
    monkeypatch.setattr(hashing, "STEP", 40)
    monkeypatch.setattr(hashing, "AHEAD", 90)
    monkeypatch.setattr(hashing, "MARK", 64)
    monkeypatch.setattr(copying, "SMALL", 8)
    monkeypatch.setattr(copying, "BUFFER", 64)
    monkeypatch.setattr(copying, "CHUNK", 100)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of known bytes."""
    file = tmp_path / "source"
    file.write_bytes(DATA)
    return file


_RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 300)), max_size=12).map(
    lambda pairs: [(start, min(SIZE, start + length)) for start, length in pairs]
)


def copy(target: Path, source: Path, head: bytes, ranges: Ranges, **options: object) -> Copier:
    """One whole copy: bytes from memory, then ranges."""
    with Copier(target, **options) as copier:  # type: ignore[arg-type]
        copier.write(head)
        steps = list(copier.append(source, ranges))
    assert sum(steps) == sum(end - start for start, end in ranges), "progress reaches the total, resumed or not"
    return copier


def joined(head: bytes, ranges: Ranges) -> bytes:
    return head + b"".join(DATA[start:end] for start, end in ranges)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.binary(max_size=200), ranges=_RANGES, kernel=st.booleans())
def test_any_ranges(tmp_path: Path, source: Path, head: bytes, ranges: Ranges, kernel: bool) -> None:
    target = tmp_path / "target"
    target.unlink(missing_ok=True)
    copier = copy(target, source, head, ranges, kernel=kernel)
    wanted = joined(head, ranges)
    assert target.read_bytes() == wanted
    assert copier.digest == (None if kernel else xxhash.xxh3_128_hexdigest(wanted))
    assert copier.resumed == 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), head=st.binary(max_size=200), ranges=_RANGES)
def test_resume_trusts_only_what_verifies(
    tmp_path: Path, source: Path, data: st.DataObject, head: bytes, ranges: Ranges
) -> None:
    """Marks of a whole run and a file that is cut, extended or damaged: the same bytes in the end, and nothing at or
    after the first damaged byte was kept."""
    target, wanted, marks = tmp_path / "target", joined(head, ranges), []
    target.unlink(missing_ok=True)
    copy(target, source, head, ranges, marks=Marks((), lambda size, digest: marks.append((size, digest))))
    assert [digest for size, digest in marks] == [xxhash.xxh3_128_hexdigest(wanted[:size]) for size, _ in marks]
    assert [size for size, _ in marks][:-1] == list(range(64, len(wanted) + 1, 64))[: len(marks) - 1]

    left = bytearray(wanted[: data.draw(st.integers(0, len(wanted)), "cut")])
    damaged = len(left)
    if left and data.draw(st.booleans(), "flip"):
        damaged = data.draw(st.integers(0, len(left) - 1), "at")
        left[damaged] ^= data.draw(st.integers(1, 255), "mask")
    left += data.draw(st.binary(max_size=80), "tail") if damaged == len(left) < len(wanted) else b""
    target.write_bytes(left)
    known = tuple(marks[: data.draw(st.integers(0, len(marks)), "known")])
    copier = copy(target, source, head, ranges, marks=Marks(known, lambda size, digest: None))
    assert target.read_bytes() == wanted
    assert copier.digest == xxhash.xxh3_128_hexdigest(wanted)
    good = next(i for i in range(len(left) + 1) if left[:i] != wanted[:i] or i == len(left))
    assert copier.resumed <= good
    assert copier.resumed == max([size for size, _ in known if left[:size] == wanted[:size]], default=0)


def test_marks_that_lie_are_not_believed(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    for known in (((64, "0" * 32),), ((10**15, "f" * 32),), ((64, ""), (128, ""))):
        target.write_bytes(DATA[:200])
        copier = copy(target, source, b"", [(0, SIZE)], marks=Marks(known, lambda size, digest: None))
        assert copier.resumed == 0
        assert target.read_bytes() == DATA


def test_without_marks_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    for kernel in (False, True):
        with pytest.raises(FileExistsError):
            Copier(tmp_path / "target", kernel=kernel)
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_with_marks_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "target").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        Copier(tmp_path / "target", marks=Marks((), lambda size, digest: None))
    assert (tmp_path / "victim").read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["write", "note"])
def test_a_full_disk_reaches_the_caller(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    marks = Marks((), full if where == "note" else lambda size, digest: None)
    if where == "write":
        monkeypatch.setattr(hashing.os, "write", full)
    for length in (SIZE, 20, 1):  # the last one is so short that only closing writes it
        with pytest.raises(OSError, match="No space left"), Copier(tmp_path / f"t{length}", marks=marks) as copier:
            list(copier.append(source, [(0, length)]))


def test_an_unfinished_file_has_no_digest(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ZeroDivisionError), Copier(tmp_path / "target") as copier:
        next(copier.append(source, [(0, SIZE)])) / 0
    assert copier.digest == ""


@pytest.mark.parametrize("guess", [1, 200, 10**6])
def test_a_reserved_size_is_only_a_hint(tmp_path: Path, source: Path, guess: int) -> None:
    copy(tmp_path / "target", source, b"head", [(3, 999)], size=guess)
    assert (tmp_path / "target").read_bytes() == joined(b"head", [(3, 999)])
    assert (tmp_path / "target").stat().st_blocks * 512 <= 8192, "nothing stays reserved"


def test_more_than_there_is_is_not_even_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)
    full = os.statvfs_result((disk.f_bsize, 4096, disk.f_blocks, 2, 2, *tuple(disk)[5:]))
    monkeypatch.setattr(hashing.os, "fstatvfs", lambda fd: full)
    with pytest.raises(OSError, match="No space left"):
        Copier(tmp_path / "target", size=8193)
    assert (tmp_path / "target").stat().st_blocks == 0
    with Copier(tmp_path / "other", size=8192) as copier:
        copier.write(b"fits")


def test_short_writes_are_continued(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(hashing.os, "write", lambda fd, data: real(fd, data[:5]))
    copy(tmp_path / "target", source, b"head", [(3, 999)])
    assert (tmp_path / "target").read_bytes() == joined(b"head", [(3, 999)])
