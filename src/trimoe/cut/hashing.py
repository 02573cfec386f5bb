"""A file that is hashed while it is written, and going on with one that a killed run left behind.

The hash is xxh3-128 of the file (what `xxh128sum` prints): at 30 GB/s per core it is far from the bottleneck, where
sha256 with processor support reaches 1 to 2 GB/s and would be slower than copying. It finds damage, not malice.
Threads read the next blocks while one is hashed and written, in order, by the caller: a cold disk has several reads to
do at any time, and with a warm cache two processors share the copying. Every MARK bytes the hash so far is noted.
Invariant: nothing that an earlier run wrote is trusted because it exists; it is read again and kept only up to the last
mark whose hash it still has.
"""

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import xxhash

from trimoe.cut.reading import SourceFile

MARK = 64 << 20  # bytes between marks: what a kill can cost
BLOCK = 1 << 20  # large enough to cost little, small enough for a processor's caches
BLOCKS = 12  # at most in memory: being read, or read and not yet written
READERS = 4  # threads

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h: the file grows with what is written, not with what is reserved


@dataclass(frozen=True)
class Marks:
    """What is known of a file from an earlier run, (bytes, hex hash of so many first bytes) in ascending order, and
    where to note more."""

    known: tuple[tuple[int, str], ...]
    note: Callable[[int, str], None]


class HashedFile:
    """A target of `Copier`. `verified` bytes of an earlier run were kept; `digest` is the hash of the whole file.

    `size` is how large the file will be, if known: space is reserved at once, which makes writing 1.7 times as fast
    (ext4) and finds a full disk early.
    """

    def __init__(self, path: Path, size: int = 0, marks: Marks | None = None) -> None:
        self.methods: set[str] = set()
        self.verified = 0
        self.digest = ""
        self._hash = xxhash.xxh3_128()
        self._note = None if marks is None else marks.note
        self._fd = self._open(path, marks)
        self._size, self._expected = self.verified, size
        try:
            reserve(self._fd, self.verified, size - self.verified)
        except OSError:
            os.close(self._fd)
            raise
        self._block, self._used = memoryview(bytearray(BLOCK)), 0
        self._wanted: list[tuple[SourceFile, int, memoryview]] = []  # what readers have to fill the block with
        self._waiting: deque[tuple[memoryview, Future[None]]] = deque()
        self._free: list[memoryview] = []
        self._written = self.verified
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="trimoe-reader")

    def put(self, data: memoryview) -> None:
        """Append bytes from memory."""
        while data:
            count = min(len(data), self._room())
            self._block[self._used : self._used + count] = data[:count]
            data = data[count:]
            self._advance(count)

    def take(self, source: SourceFile, start: int, length: int) -> int:
        """Append `length` bytes of an open file. That it ends early is found when they are read, which may be later."""
        done = 0
        while done < length:
            count = min(length - done, self._room())
            self._wanted.append((source, start + done, self._block[self._used : self._used + count]))
            self._advance(count)
            done += count
        return done

    def close(self, complete: bool) -> None:
        """Write what waits, unless an error made the file worthless, and close."""
        try:
            if complete:
                self._hand_over()
                while self._waiting:
                    self._write_oldest()
                if self._size < self._expected:
                    os.ftruncate(self._fd, self._size)  # gives back what was reserved for nothing
                self.digest = self._hash.hexdigest()
                if self._note is not None:
                    self._note(self._size, self.digest)
        finally:
            self._readers.shutdown(cancel_futures=True)
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
        block, good = memoryview(bytearray(BLOCK)), 0
        hasher = xxhash.xxh3_128()
        for size, digest in known:
            at = good
            while at < size and (count := os.preadv(fd, [block[: min(BLOCK, size - at)]], at)):
                hasher.update(block[:count])
                at += count
            if at < size or hasher.hexdigest() != digest:
                break
            good, self._hash = size, cast(xxhash.xxh3_128, hasher.copy())
        return good

    def _room(self) -> int:
        """Bytes that fit into the block; blocks end at multiples of BLOCK in the file, so that marks do too."""
        return BLOCK - self._size % BLOCK

    def _advance(self, count: int) -> None:
        self._used += count
        self._size += count
        if self._size % BLOCK == 0:
            self._hand_over()

    def _hand_over(self) -> None:
        """Let readers fill the block, and take another; when too many wait, write the oldest first."""
        self._waiting.append((self._block[: self._used], self._readers.submit(_fill, self._wanted)))
        if len(self._waiting) == BLOCKS:
            self._write_oldest()
        self._block = self._free.pop() if self._free else memoryview(bytearray(BLOCK))
        self._wanted, self._used = [], 0

    def _write_oldest(self) -> None:
        """Wait until a block is full, hash and write it; raises what reading raised."""
        block, filled = self._waiting.popleft()
        filled.result()
        self._hash.update(block)
        rest = block
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._written += len(block)
        if block and self._written % MARK == 0 and self._note is not None:
            self._note(self._written, self._hash.hexdigest())
        if len(block) == BLOCK:
            self._free.append(block)


def _fill(wanted: list[tuple[SourceFile, int, memoryview]]) -> None:
    """In a reader: the parts of a block that come from files."""
    for source, start, target in wanted:
        source.read_into(target, start)


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
