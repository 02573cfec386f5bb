"""Notices files that change while a command reads them, so that a result is never about a mixture of two states.

Not guaranteed: a change that leaves size, inode and both times as they were. The kernel sets the time of the last
change at each write and each replacement; programs cannot set it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from trimoe.errors import CheckpointError

Stamp = tuple[int, int, int, int]


def stamp(file: Path) -> Stamp:
    """Size, time of the last write, time of the last change of the inode, and the inode. Raises `OSError`."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class Watch:
    """The state of a set of files when it was made. `done` is the participle for the message ("compared", "cut").

    `files` lists the files that the work depends on. It is called again at each check, so it decides if new ones count.
    Make it before the first byte is read.
    """

    def __init__(self, what: Path | str, done: str, files: Callable[[], Iterable[Path]]) -> None:
        self._what, self._done, self._files = what, done, files
        self._before = self._now()

    def require_unchanged(self) -> None:
        """Raise `CheckpointError` naming the first file that was changed, replaced, added or removed."""
        now = self._now()
        if now == self._before:
            return
        paths = sorted(now.keys() | self._before.keys())
        file = next(path for path in paths if now.get(path) != self._before.get(path))
        how = "is new" if file not in self._before else "is gone" if now.get(file) is None else "was written to"
        raise CheckpointError(
            f"{self._what} was modified while it was {self._done}",
            expected="files that do not change until the command ends",
            actual=f"{file} {how}",
            remedy="wait until nothing writes to it and run again",
        )

    def _now(self) -> dict[Path, Stamp | None]:
        found: dict[Path, Stamp | None] = {}
        for file in self._files():
            try:
                found[file] = stamp(file)
            except OSError:
                found[file] = None
        return found
