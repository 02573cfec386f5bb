"""The one rule for paths in hand-written files (benches, calibration sets, score tables): they stay below their folder.

A file that came from somebody else must not make trimoe read, and perhaps send, other files of this machine. A path is
relative to the folder of its file, or to a folder that the command line names (`--data`), and lies below one of them;
an absolute path is allowed only if it does. Symbolic links are followed: whoever made the link chose its target.
"""

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

from trimoe.errors import BadInput

Place = Callable[[Path], Path]


def require_inner(path: str, key: str) -> None:
    """`ValueError` unless a path is relative and has no `..`, for files whose folder is chosen later."""
    parts = {*PurePosixPath(path).parts, *PureWindowsPath(path).parts}
    absolute = PurePosixPath(path).is_absolute() or bool(PureWindowsPath(path).anchor)
    if not path.strip() or absolute or ".." in parts or "\0" in path:
        raise ValueError(f"`{key}` must be a relative path below the data folder, without `..`: {path[:80]!r}")


def places(folder: Path, what: str, data: Path | None = None, error: type[BadInput] = BadInput) -> Place:
    """The function that finds the paths of the file `what` below `folder`, or below `data` if they are there.

    It raises `error` for a path that leads out of both.
    """

    def place(path: Path) -> Path:
        roots = [folder] if data is None else [folder, data]
        # Normalised, because `link/..` would leave the folder by way of a link.
        inside = [Path(os.path.normpath(root / path)) for root in roots if _below(root / path, root)]
        if not inside and path.is_absolute():
            inside = [Path(os.path.normpath(path)) for root in roots if _below(path, root)]
        if not inside:
            raise error(
                f"{what} names the file {path}, which is outside its folder",
                expected=f"a path below {' or '.join(str(root) for root in roots)}",
                actual=str(path),
                remedy="put the file, or a symbolic link to it, below that folder"
                + (" (for `trimoe calibrate`, --data may name another folder)" if data is None else ""),
            )
        return next((found for found in inside if found.exists()), inside[0])

    return place


def _below(path: Path, root: Path) -> bool:
    """Whether a path lies below a folder, judged by its text."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
