"""Reads source files fast, from the page cache or from disk.

Cached ranges are simply copied. For others the kernel is asked to read ahead exactly the ranges that will be needed,
while earlier ones are hashed and written. Its own readahead is switched off: it would also fetch the experts that are
dropped. Without posix_fadvise, reads are plain reads.
"""

import os
from pathlib import Path

from trimoe.errors import CheckpointError

_ADVICE = 256 << 10  # bytes per call: Linux limits a call to the disk's largest request, which is seldom smaller
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class SourceFile:
    """An open file. `cold` is set by the first read that waits for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cold = False
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._flags = _NOWAIT
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead by the kernel
        self._stamp = self._now()

    def close(self) -> None:
        """Close the file; it must not be read afterwards."""
        os.close(self.fd)

    def unchanged(self) -> None:
        """Raise `CheckpointError` if the file was modified since it was opened."""
        if self._now() != self._stamp:
            raise CheckpointError(
                f"{self.path} was modified while it was copied",
                expected="a source that does not change",
                remedy="wait until nothing writes to the checkpoint and run again",
            )

    def expect(self, start: int, length: int) -> None:
        """Ask the kernel to start reading a range that will be needed. Safe from another thread."""
        if hasattr(os, "posix_fadvise"):
            for at in range(start, start + length, _ADVICE):
                os.posix_fadvise(self.fd, at, min(_ADVICE, start + length - at), os.POSIX_FADV_WILLNEED)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the file's bytes from `start`.

        Raises `CheckpointError` if the file ends early, `OSError` from the system.
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
            if done < len(target) and self._flags:  # not cached, or a file system without RWF_NOWAIT
                self.cold, self._flags = True, 0
            elif count == 0 and done < len(target):
                raise ended_early(len(target), done)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns


def ended_early(expected: int, actual: int) -> CheckpointError:
    """The error for a source file that is shorter than its header states."""
    return CheckpointError(
        "a source file ended early while it was copied",
        expected=f"{expected} more bytes",
        actual=f"{actual} bytes",
        remedy="run again when nothing writes to it",
    )
