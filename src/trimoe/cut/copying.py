"""Moving byte ranges between files at the speed of the machine, with memory that does not depend on their size.

Order of preference: copy_file_range (the kernel copies, or shares blocks where the file system can), sendfile, reads
and writes through one 8 MiB buffer. `Copier.methods` says what was used, so a fallback is visible in the report.
Ranges far smaller than a page burst are gathered: read in one span, joined, written in one call.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from trimoe.errors import CheckpointError

CHUNK = 64 << 20  # per kernel call: large enough to cost nothing, small enough for progress and interrupts
BUFFER = 8 << 20
AHEAD = 32 << 20  # how far the kernel is asked to read ahead of the copy, across the gaps of dropped experts
SMALL = 32 << 10  # ranges below this are gathered

_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: some sandboxes


class Copier:
    """Appends source ranges to one target file. A context manager; source files stay open until it closes."""

    def __init__(self, target: Path) -> None:
        self.methods: set[str] = set()
        self._target = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._sources: dict[Path, int] = {}
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._transfers: list[tuple[str, Callable[[int, int, int], int]]] = [
            ("copy_file_range", self._by_range), ("sendfile", self._by_sendfile), ("read/write", self._by_buffer),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._target)
        for fd in self._sources.values():
            os.close(fd)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes from memory."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._target, view) :]

    def append(self, file: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
        """Append `ranges` of `file` in order; yields the bytes done by each step.

        Raises `CheckpointError` if the file ends early; `OSError` as the system gives it.
        """
        source = self._open(file)
        small: list[tuple[int, int]] = []
        for start, end in _with_readahead(source, ranges):
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

    def unchanged(self) -> None:
        """Raise `CheckpointError` if a source file was modified since it was opened."""
        for file, fd in self._sources.items():
            if _stamp(fd) != self._stamps[file]:
                raise CheckpointError(f"{file} was modified while it was copied", expected="a source at rest",
                                      remedy="wait until nothing writes to the checkpoint and run again")  # fmt: skip

    def _open(self, file: Path) -> int:
        if file not in self._sources:
            self._sources[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            self._stamps[file] = _stamp(self._sources[file])
        return self._sources[file]

    def _copy(self, source: int, start: int, end: int) -> Iterator[int]:
        while start < end:
            count = self._transfer(source, start, min(CHUNK, end - start))
            if count == 0:
                raise _ended_early(end - start, 0)
            start += count
            yield count

    def _transfer(self, source: int, start: int, length: int) -> int:
        """One step by the best method that works here; a method that the file system refuses is not tried again."""
        while True:
            name, move = self._transfers[0]
            last = len(self._transfers) == 1
            try:
                count = move(source, start, length)
            except OSError as exc:
                if last or exc.errno not in _UNSUPPORTED:
                    raise
                count = 0
            # Some file systems answer 0 instead of an error; only plain reads decide that a file has ended.
            if count or last:
                self.methods.add(name)
                return count
            del self._transfers[0]

    def _by_range(self, source: int, start: int, length: int) -> int:
        if not hasattr(os, "copy_file_range"):
            raise OSError(errno.ENOSYS, "no copy_file_range on this system")
        return os.copy_file_range(source, self._target, length, offset_src=start)

    def _by_sendfile(self, source: int, start: int, length: int) -> int:
        return os.sendfile(self._target, source, start, length)

    def _by_buffer(self, source: int, start: int, length: int) -> int:
        data = os.pread(source, min(length, BUFFER), start)
        self.write(data)
        return len(data)

    def _gather(self, source: int, ranges: list[tuple[int, int]]) -> int:
        """Ascending small ranges within BUFFER bytes of each other, in one read and one write."""
        base = ranges[0][0]
        span = ranges[-1][1] - base
        block = memoryview(os.pread(source, span, base))
        if len(block) != span:
            raise _ended_early(span, len(block))
        joined = b"".join(block[start - base : end - base] for start, end in ranges)
        self.write(joined)
        self.methods.add("gather")
        return len(joined)


def _with_readahead(source: int, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same ranges; the kernel is asked for the bytes of later ones while earlier ones are copied."""
    if not hasattr(os, "posix_fadvise"):
        yield from ranges
        return
    waiting: list[tuple[int, int]] = []
    queued = 0
    for start, end in ranges:
        if end - start >= SMALL:
            os.posix_fadvise(source, start, min(end - start, AHEAD), os.POSIX_FADV_WILLNEED)
        waiting.append((start, end))
        queued += end - start
        while queued > AHEAD:
            first = waiting.pop(0)
            queued -= first[1] - first[0]
            yield first
    yield from waiting


def _ended_early(expected: int, actual: int) -> CheckpointError:
    return CheckpointError("a source file ended early while it was copied", expected=f"{expected} more bytes",
                           actual=f"{actual} bytes", remedy="run again when nothing writes to it")  # fmt: skip


def _stamp(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns
