"""A file that is hashed while it is written, by two threads; and going on with one that a killed run left behind.

The hash is xxh3-128 of the file (what `xxh128sum` prints): at 30 GB/s per core it is far from the bottleneck, where
sha256 with processor support reaches 1 to 2 GB/s and would be slower than copying. It finds damage, not malice.
Every MARK bytes the hash so far is noted. Invariant: nothing that an earlier run wrote is trusted because it exists; it
is read again and kept only up to the last mark whose hash it still has.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import cast

import xxhash

MARK = 64 << 20  # bytes between marks: what a kill can cost
BLOCK = 1 << 20  # large enough that handing over costs nothing, small enough for the second-level cache
BLOCKS = 3  # in flight between the two threads


@dataclass(frozen=True)
class Marks:
    """What is known of a file from an earlier run, (bytes, hex hash of so many first bytes) in ascending order, and
    where to note more."""

    known: tuple[tuple[int, str], ...]
    note: Callable[[int, str], None]


class HashedFile:
    """A target of `Copier`. `verified` bytes of an earlier run were kept; `digest` is the hash of the whole file."""

    def __init__(self, path: Path, marks: Marks | None = None) -> None:
        self.methods: set[str] = set()
        self.verified = 0
        self.digest = ""
        self._hash = xxhash.xxh3_128()
        self._note = None if marks is None else marks.note
        if marks is not None and path.exists():
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self.verified = self._verify(marks.known)
            if self.verified:
                os.ftruncate(self._fd, self.verified)
                os.lseek(self._fd, self.verified, os.SEEK_SET)
            else:  # a new file: ext4 writes out a file that was truncated to nothing when it is closed, and waits
                os.close(self._fd)
                path.unlink()
        if not self.verified:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._size = self.verified
        self._writer = _Writer(self._fd, self._note)
        self._block, self._used = self._writer.free.get(), 0

    def put(self, data: memoryview) -> None:
        """Append bytes from memory."""
        while data:
            count = min(len(data), self._room())
            self._block[self._used : self._used + count] = data[:count]
            data = data[count:]
            self._advance(count)

    def take(self, source: int, start: int, length: int) -> int:
        """Append `length` bytes of an open file, fewer if it ends."""
        self.methods.add("read/write, hashed")
        done = 0
        while done < length:
            count = min(length - done, self._room())
            count = os.preadv(source, [self._block[self._used : self._used + count]], start + done)
            if count == 0:
                break
            self._advance(count)
            done += count
        return done

    def close(self, complete: bool) -> None:
        """Write what waits, unless an error made the file worthless, and close. Raises the writer's error, if any."""
        try:
            if complete and self._used:
                self._pass_on()
            self._writer.finish()
            if complete:
                self._writer.check()
                self.digest = self._hash.hexdigest()
                if self._note is not None:
                    self._note(self._size, self.digest)
        finally:
            os.close(self._fd)

    def _room(self) -> int:
        """Bytes that fit into the block; blocks end at multiples of BLOCK in the file, so that marks do too."""
        return BLOCK - (self._size % BLOCK)

    def _advance(self, count: int) -> None:
        self._used += count
        self._size += count
        if self._size % BLOCK == 0:
            self._pass_on()

    def _pass_on(self) -> None:
        """Hash the block and give it to the writer."""
        data = self._block[: self._used]
        self._hash.update(data)
        mark = (self._size, self._hash.hexdigest()) if self._size % MARK == 0 else None
        self._writer.check()
        self._writer.full.put((self._block, data, mark))
        self._block, self._used = self._writer.free.get(), 0

    def _verify(self, known: tuple[tuple[int, str], ...]) -> int:
        """Hash the file up to the last mark that holds; returns its position. The hash state is left there."""
        block, good = memoryview(bytearray(BLOCK)), 0
        hasher = xxhash.xxh3_128()
        for size, digest in known:
            at = good
            while at < size and (count := os.preadv(self._fd, [block[: min(BLOCK, size - at)]], at)):
                hasher.update(block[:count])
                at += count
            if at < size or hasher.hexdigest() != digest:
                break
            good, self._hash = size, cast(xxhash.xxh3_128, hasher.copy())
        return good


class _Writer:
    """The second thread: writes blocks in order. After an error it only hands blocks back, so that nobody waits."""

    def __init__(self, fd: int, note: Callable[[int, str], None] | None) -> None:
        self.free: SimpleQueue[memoryview] = SimpleQueue()
        self.full: SimpleQueue[tuple[memoryview, memoryview, tuple[int, str] | None] | None] = SimpleQueue()
        for _ in range(BLOCKS):
            self.free.put(memoryview(bytearray(BLOCK)))
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, args=(fd, note), name="trimoe-writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until everything is written."""
        self.full.put(None)
        self._thread.join()

    def _run(self, fd: int, note: Callable[[int, str], None] | None) -> None:
        while (item := self.full.get()) is not None:
            block, data, mark = item
            try:
                while data and self._error is None:
                    data = data[os.write(fd, data) :]
                if mark is not None and note is not None and self._error is None:
                    note(*mark)
            except Exception as exc:  # noqa: BLE001 whatever it is, it is raised where the bytes come from (check)
                self._error = exc
            self.free.put(block)
