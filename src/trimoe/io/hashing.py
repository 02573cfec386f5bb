"""A file that is hashed while it is written, and going on with one that a killed run left behind.

The hash is xxh3-128 of the file (what `xxh128sum` prints): at 30 GB/s per core it is far from the bottleneck, where
sha256 with processor support reaches 1 to 2 GB/s and would be slower than copying. It finds damage, not malice.
One thread reads, hashes and writes piece by piece, each while it is in the processor's own cache: more threads were
slower. What a disk has to give is announced to it well before, by a second thread: finding memory for what is read
costs as much as hashing and writing it. Every MARK bytes the hash so far is noted.
Invariant: nothing that an earlier run wrote is trusted because it exists; it is read again and kept only up to the last
mark whose hash it still has.
"""

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import xxhash

from trimoe.io.reading import SourceFile, ended_early

MARK = 64 << 20  # bytes between marks: what a kill can cost
PIECE = 256 << 10  # a quarter of the second-level cache of current processors: it stays there from reading to writing
STEP = 4 << 20  # bytes announced, and then read, at a time
AHEAD = 32 << 20  # announced and not yet read: a hundredth of a second of a fast disk

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h: the file grows with what is written, not with what is reserved


@dataclass(frozen=True)
class Marks:
    """What is known of a file from an earlier run, (bytes, hex hash of so many first bytes) in ascending order, and
    where to note more."""

    known: tuple[tuple[int, str], ...]
    note: Callable[[int, str], None]


class _Part(NamedTuple):
    """Bytes that come next: of a file, or from memory."""

    source: SourceFile | None
    start: int
    length: int
    data: memoryview = memoryview(b"")


class HashedFile:
    """A target of `Copier`. `verified` bytes of an earlier run were kept; `digest` is the hash of the whole file.

    `size` is how large the file will be, if known: space is reserved at once, which makes writing 1.7 times as fast
    (ext4) and finds a full disk early.
    """

    def __init__(self, path: Path, size: int = 0, marks: Marks | None = None) -> None:
        self.methods = {"read/write, hashed"}
        self.verified = 0
        self.digest = ""
        self._hash = xxhash.xxh3_128()
        self._note = None if marks is None else marks.note
        self._fd = self._open(path, marks)
        self._expected = size
        try:
            reserve(self._fd, self.verified, size - self.verified)
        except OSError:
            os.close(self._fd)
            raise
        self._waiting: deque[_Part] = deque()
        self._ahead = 0  # bytes that wait
        self._piece = memoryview(bytearray(PIECE))
        self._used = 0  # of the piece
        self._written = self.verified
        self._cold: set[SourceFile] = set()  # whose ranges are announced
        self._announcer = ThreadPoolExecutor(1, thread_name_prefix="trimoe-announcer")  # starts when it is needed

    def put(self, data: memoryview) -> None:
        """Append bytes from memory, which must not change any more."""
        self._advance(_Part(None, 0, len(data), data))

    def take(self, source: SourceFile, start: int, length: int) -> int:
        """Append `length` bytes of an open file. That it ends early is found when they are read, which may be later."""
        for at in range(start, start + length, STEP):
            count = min(STEP, start + length - at)
            self._announce(source)
            if source in self._cold:
                self._announcer.submit(source.expect, at, count)
            self._advance(_Part(source, at, count))
        return length

    def close(self, complete: bool) -> None:
        """Write what waits, unless an error made the file worthless, and close."""
        try:
            if complete:
                while self._waiting:
                    self._pass_through(self._waiting.popleft())
                self._write(self._piece[: self._used])
                if self._written < self._expected:
                    os.ftruncate(self._fd, self._written)  # gives back what was reserved for nothing
                self.digest = self._hash.hexdigest()
                if self._note is not None:
                    self._note(self._written, self.digest)
        finally:
            self._announcer.shutdown(cancel_futures=True)
            os.close(self._fd)

    def _open(self, path: Path, marks: Marks | None) -> int:
        """The file, positioned behind its verified part; sets `verified` and the hash."""
        if marks is not None and path.exists():
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self.verified = self._verify(fd, marks.known)
            if self.verified:
                os.ftruncate(fd, self.verified)
                os.lseek(fd, self.verified, os.SEEK_SET)
                return fd
            os.close(fd)
            path.unlink()  # and not truncate: ext4 then writes the file out, and waits, when it is closed
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _verify(self, fd: int, known: tuple[tuple[int, str], ...]) -> int:
        """Hash the file up to the last mark that holds; returns its position. The hash state is left there."""
        block, good = memoryview(bytearray(PIECE)), 0
        hasher = xxhash.xxh3_128()
        for size, digest in known:
            at = good
            while at < size and (count := os.preadv(fd, [block[: min(PIECE, size - at)]], at)):
                hasher.update(block[:count])
                at += count
            if at < size or hasher.hexdigest() != digest:
                break
            good, self._hash = size, cast(xxhash.xxh3_128, hasher.copy())
        return good

    def _advance(self, part: _Part) -> None:
        self._waiting.append(part)
        self._ahead += part.length
        while self._ahead > AHEAD:
            oldest = self._waiting.popleft()
            self._ahead -= oldest.length
            self._pass_through(oldest)

    def _pass_through(self, part: _Part) -> None:
        """Through the piece, which is written whenever it is full: at multiples of PIECE in the file, so that marks are
        there too."""
        done = 0
        while done < part.length:
            count = min(part.length - done, PIECE - self._used)
            target = self._piece[self._used : self._used + count]
            if part.source is None:
                target[:] = part.data[done : done + count]
            else:
                part.source.read_into(target, part.start + done)
                self._announce(part.source)
            done, self._used = done + count, self._used + count
            if self._used == PIECE:
                self._write(self._piece)
                self._used = 0
                if self._note is not None and self._written % MARK == 0:
                    self._note(self._written, self._hash.hexdigest())

    def _announce(self, source: SourceFile) -> None:
        """From the first read on that had to wait for the disk: what waits here already."""
        if source.cold and source not in self._cold:
            self._cold.add(source)
            for part in self._waiting:
                if part.source is source:
                    self._announcer.submit(source.expect, part.start, part.length)

    def _write(self, data: memoryview) -> None:
        self._hash.update(data)
        self._written += len(data)
        while data:
            data = data[os.write(self._fd, data) :]


def hash_range(path: Path, start: int = 0, length: int | None = None) -> str:
    """Hex xxh3-128 of `length` bytes of a file from `start`, or of everything from there. Streamed.

    Raises `CheckpointError` if the file ends early.
    """
    hasher, block, done = xxhash.xxh3_128(), memoryview(bytearray(STEP)), 0
    with path.open("rb", buffering=0) as handle:
        handle.seek(start)
        while length is None or done < length:
            count = handle.readinto(block if length is None else block[: min(STEP, length - done)])
            if not count:
                break
            hasher.update(block[:count])
            done += count
    if length is not None and done < length:
        raise ended_early(length, done)
    return hasher.hexdigest()


def reserve(fd: int, start: int, length: int) -> None:
    """Reserve space for a file where the system can; raises `OSError` if there is not enough, and holds none then.

    Not os.posix_fallocate: on a file system that cannot reserve, it writes every block instead.
    """
    allocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if length <= 0 or allocate is None:
        return
    disk = os.fstatvfs(fd)
    code = errno.ENOSPC
    if (
        length <= disk.f_bavail * disk.f_frsize
    ):  # else not even tried: a file system may take all there is, and then fail
        allocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        code = ctypes.get_errno() if allocate(fd, _KEEP_SIZE, start, length) else 0
    if code in (errno.ENOSPC, errno.EDQUOT):
        os.ftruncate(fd, start)
        raise OSError(code, os.strerror(code))
