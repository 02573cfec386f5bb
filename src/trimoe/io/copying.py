"""Copies byte ranges between files at full speed, with memory that does not depend on their size.

By default every byte passes through a small buffer and is hashed there. With `kernel=True` nothing is hashed, and the
fastest method that works is used: copy_file_range (the kernel or a file server copies, or shares blocks), sendfile,
reads and writes. `Copier.methods` records the methods used, so a fallback is visible in the report.
Small ranges that are close together are gathered: read in one span and joined.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from trimoe.io.hashing import HashedFile, Marks
from trimoe.io.reading import SourceFile, ended_early

CHUNK = 64 << 20  # bytes per step: large enough to be fast, small enough for progress and interrupts
BUFFER = 8 << 20
ENTRIES = 2 << 20  # entries of an axis are picked out of this many bytes at a time
SMALL = 32 << 10  # ranges below this are gathered

_ENTRY = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}  # numpy selects these faster than entries of any size

_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: some sandboxes


class Target(Protocol):
    """A file that is appended to."""

    methods: set[str]

    def put(self, data: memoryview) -> None:
        """Append bytes from memory."""

    def settle(self) -> None:
        """Write what is waiting; memory that was given to `put` may change afterwards."""

    def take(self, source: SourceFile, start: int, length: int) -> int:
        """Append up to `length` bytes of an open file; returns how many, 0 if the file has ended."""

    def close(self, complete: bool) -> None:
        """Write what is buffered (if `complete`) and close."""


class Copier:
    """Appends source ranges to one target file. A context manager; source files stay open until it closes.

    `size` is the final size of the target, if known (see `HashedFile`). With `marks` the target may exist: the bytes
    that an earlier run recorded are read again and kept as far as their hashes agree. The caller then repeats the same
    calls of `write` and `append`, which skip the bytes that were kept.
    """

    def __init__(self, target: Path, *, kernel: bool = False, size: int = 0, marks: Marks | None = None) -> None:
        self._hashed = None if kernel else HashedFile(target, size, marks)
        self._target: Target = KernelFile(target) if self._hashed is None else self._hashed
        self._skip = self.resumed
        self._sources: dict[Path, SourceFile] = {}
        self._rooms = [bytearray(), bytearray()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._target.close(complete=kind is None)
        finally:
            for source in self._sources.values():
                source.close()

    @property
    def methods(self) -> set[str]:
        """The methods used to copy."""
        return self._target.methods

    @property
    def resumed(self) -> int:
        """Bytes of an earlier run that were verified and kept."""
        return 0 if self._hashed is None else self._hashed.verified

    @property
    def digest(self) -> str | None:
        """Hex xxh3-128 of the whole file once it is closed; None if the kernel copied."""
        return None if self._hashed is None else self._hashed.digest

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes from memory."""
        view = memoryview(data)
        skipped = min(self._skip, len(view))
        self._skip -= skipped
        if len(view) > skipped:
            self._target.put(view[skipped:])

    def skip(self, length: int) -> bool:
        """Count the next `length` bytes as appended if they were all kept from an earlier run; else do nothing."""
        if self._skip < length:
            return False
        self._skip -= length
        return True

    def append(self, file: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
        """Append `ranges` of `file` in order; yields the number of bytes after each step.

        Raises `CheckpointError` if the file ends early, `OSError` from the system.
        """
        source = self._open(file)
        small: list[tuple[int, int]] = []
        before = self._skip
        for start, end in self._not_skipped(ranges):
            if end - start < SMALL and (not small or (start >= small[-1][1] and end - small[0][0] <= BUFFER)):
                small.append((start, end))
                continue
            if small:
                yield self._gather(source, small)
                small = []
            if end - start < SMALL:
                small.append((start, end))
            else:
                yield from self._copy(source, start, end)
        if small:
            yield self._gather(source, small)
        if before > self._skip:
            yield before - self._skip

    def append_entries(
        self, file: Path, start: int, outer: int, length: int, entry: int, keep: Sequence[int]
    ) -> Iterator[int]:
        """Append some entries of a block: [`outer`, `length`] entries of `entry` bytes at `start`, those numbered
        `keep` (ascending) of every `length`. Yields the number of bytes after each step.

        Raises `CheckpointError` if the file ends early, `OSError` from the system.
        """
        import numpy as np

        source, ids = self._open(file), np.asarray(keep)
        # Several rows at a time, or a part of one row's kept entries that lie within the buffer.
        whole = length * entry <= ENTRIES
        rows, step = max(1, ENTRIES // (length * entry)), max(1, ENTRIES // entry)
        for row in range(0, outer, rows):
            count = min(rows, outer - row)
            at = 0
            while at < len(ids):
                end = len(ids) if whole else int(np.searchsorted(ids, ids[at] + step))
                written = count * (end - at) * entry
                if not self.skip(written):
                    first, last = (0, length) if whole else (int(ids[at]), int(ids[end - 1]) + 1)
                    block = self._room(0, count * (last - first) * entry)
                    source.read_into(block, start + (row * length + first) * entry)
                    kind = _ENTRY.get(entry, f"V{entry}")
                    cells = np.frombuffer(block, kind).reshape(count, last - first)
                    chosen = self._room(1, written)
                    out = np.frombuffer(chosen, kind).reshape(count, end - at)
                    np.take(cells, ids[at:end] - first, axis=1, out=out, mode="clip")
                    self.write(chosen)
                    self._target.settle()
                    self.methods.add("entries")
                yield written
                at = end

    def _room(self, number: int, size: int) -> memoryview:
        """One of two buffers that are used again."""
        if len(self._rooms[number]) < size:
            self._rooms[number] = bytearray(size)
        return memoryview(self._rooms[number])[:size]

    def unchanged(self) -> None:
        """Raise `CheckpointError` if a source file was modified since it was opened."""
        for source in self._sources.values():
            source.unchanged()

    def _open(self, file: Path) -> SourceFile:
        if file not in self._sources:
            self._sources[file] = SourceFile(file)
        return self._sources[file]

    def _not_skipped(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for start, end in ranges:
            skipped = min(self._skip, end - start)
            self._skip -= skipped
            if start + skipped < end:
                yield start + skipped, end

    def _copy(self, source: SourceFile, start: int, end: int) -> Iterator[int]:
        while start < end:
            count = self._target.take(source, start, min(CHUNK, end - start))
            if count == 0:
                raise ended_early(end - start, 0)
            start += count
            yield count

    def _gather(self, source: SourceFile, ranges: list[tuple[int, int]]) -> int:
        """Append small ascending ranges within BUFFER bytes of each other, with one read."""
        base = ranges[0][0]
        span = ranges[-1][1] - base
        block = memoryview(bytearray(span))
        source.read_into(block, base)
        joined = b"".join(block[start - base : end - base] for start, end in ranges)
        self._target.put(memoryview(joined))
        self._target.methods.add("gather")
        return len(joined)


class KernelFile:
    """A new file that the kernel fills; where the file system allows it, no byte enters this process."""

    def __init__(self, path: Path) -> None:
        self.methods: set[str] = set()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._transfers: list[tuple[str, Callable[[int, int, int], int]]] = [
            ("copy_file_range", self._by_range),
            ("sendfile", self._by_sendfile),
            ("read/write", self._by_buffer),
        ]

    def close(self, complete: bool) -> None:
        """Close the file; nothing is buffered."""
        os.close(self._fd)

    def put(self, data: memoryview) -> None:
        """Append bytes from memory."""
        while data:
            data = data[os.write(self._fd, data) :]

    def settle(self) -> None:
        """Nothing waits."""

    def take(self, source: SourceFile, start: int, length: int) -> int:
        """Append by the fastest method that works; one that the file system refuses is not tried again."""
        while True:
            name, move = self._transfers[0]
            last = len(self._transfers) == 1
            try:
                count = move(source.fd, start, length)
            except OSError as exc:
                if last or exc.errno not in _UNSUPPORTED:
                    raise
                count = 0
            # Some file systems return 0 instead of an error; only a plain read can tell that the file has ended.
            if count or last:
                self.methods.add(name)
                return count
            del self._transfers[0]

    def _by_range(self, source: int, start: int, length: int) -> int:
        if not hasattr(os, "copy_file_range"):
            raise OSError(errno.ENOSYS, "no copy_file_range on this system")
        return os.copy_file_range(source, self._fd, length, offset_src=start)

    def _by_sendfile(self, source: int, start: int, length: int) -> int:
        return os.sendfile(self._fd, source, start, length)

    def _by_buffer(self, source: int, start: int, length: int) -> int:
        data = os.pread(source, min(length, BUFFER), start)
        self.put(memoryview(data))
        return len(data)
