"""Reading a source file fast, whether the page cache holds it or not.

What the cache holds costs nothing but the copy. Of what it does not hold, the kernel is told the ranges that will be
wanted, well before they are: it reads them while others are hashed and written, and never the experts that are dropped,
which its own readahead would fetch too. Where a system has no such advice, reads are plain reads.
"""

import os
from pathlib import Path

from trimoe.errors import CheckpointError

_ADVICE = 256 << 10  # bytes per call: Linux cuts a call off at the disk's largest request, which is seldom smaller
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class SourceFile:
    """An open file. `cold` is set by the first read that has to wait for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cold = False
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._flags = _NOWAIT
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead but ours
        self._stamp = self._now()

    def close(self) -> None:
        """Close the file; nobody may read any more."""
        os.close(self.fd)

    def unchanged(self) -> None:
        """Raise `CheckpointError` if the file was modified since it was opened."""
        if self._now() != self._stamp:
            raise CheckpointError(
                f"{self.path} was modified while it was copied",
                expected="a source at rest",
                remedy="wait until nothing writes to the checkpoint and run again",
            )

    def expect(self, start: int, length: int) -> None:
        """Let the kernel begin to read a range that will be wanted; may be called from another thread."""
        if hasattr(os, "posix_fadvise"):
            for at in range(start, start + length, _ADVICE):
                os.posix_fadvise(self.fd, at, min(_ADVICE, start + length - at), os.POSIX_FADV_WILLNEED)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the file's bytes from `start` on.

        Raises `CheckpointError` if the file ends before; `OSError` as the system gives it.
        """
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self.fd, [target[done:]], start + done, self._flags)
            except OSError:
                if not self._flags:
                    raise
                count = 0
            done += count
            if done < len(target) and self._flags:  # not in the cache, or a file system that cannot say
                self.cold, self._flags = True, 0
            elif count == 0 and done < len(target):
                raise ended_early(len(target), done)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns


def ended_early(expected: int, actual: int) -> CheckpointError:
    """A source file that is shorter than its header says."""
    return CheckpointError(
        "a source file ended early while it was copied",
        expected=f"{expected} more bytes",
        actual=f"{actual} bytes",
        remedy="run again when nothing writes to it",
    )
