"""Publishing by rename: nothing appears under its final name before it is complete.

Invariants: unless a caller leaves that to the kernel, the content is synced before the rename; a kill leaves at most a
hidden temporary sibling. The next run for the same output takes it over: it resumes from a leftover of the same
identity (which the caller must verify) and empties any other. Not guaranteed: atomicity across file systems.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimoe.errors import BadInput, MissingPrerequisite

RESUME = ".resume"
"""Folder inside a temporary directory with what a later run needs to resume; removed before publishing."""
_SPARE = 16 << 20  # bytes that must stay free on the disk


def require_absent(path: Path) -> None:
    """Refuse to overwrite. Raises `BadInput` if `path` exists or is not a possible name."""
    try:
        exists = path.exists() or path.is_symlink()
        _temporary(path).exists()
    except OSError as exc:
        raise BadInput(
            f"output {str(path)[:80]} cannot be made",
            expected="a name that the file system can hold",
            actual=exc.strerror or str(exc),
            remedy="choose a shorter -o",
        ) from exc
    if exists:
        raise BadInput(
            f"output {path} exists already",
            expected="a path that does not exist",
            actual="it exists",
            remedy="choose another -o, or remove it first",
        )


def require_space(path: Path, needed: int) -> None:
    """Raise `MissingPrerequisite` unless the file system of `path` has `needed` bytes free (plus 16 MiB)."""
    where = path.absolute()
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    if free < needed + _SPARE:
        raise MissingPrerequisite(
            f"not enough disk space for {path}",
            expected=f"{needed:,} bytes",
            actual=f"{free:,} bytes free in {where}",
            remedy="free some space or choose another -o",
        )


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


@contextmanager
def publish_file(path: Path, *, overwrite: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success sync it and rename it to `path`, on error remove it.

    `sync=False` is for files that belong to others which are not synced either (see `publish_dir`).
    """
    if not overwrite:
        require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
        if sync:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def publish_large_file(path: Path, *, sync: bool = True, identity: str | None = None) -> Iterator[Path]:
    """Like `publish_file`, for files that take long: yields the file's place inside a hidden, locked folder.

    `sync` and `identity` are those of `publish_dir`.
    """
    with _temporary_folder(path, identity) as folder:
        yield folder / path.name
        if sync:
            _sync(folder / path.name)
        _rename(folder / path.name, path, sync)


@contextmanager
def publish_dir(path: Path, *, sync: bool = True, identity: str | None = None) -> Iterator[Path]:
    """Yield a hidden, locked directory to fill; on success rename it to `path`, on error remove it.

    With `identity` (a hash of everything that decides the bytes) the leftover of a killed or interrupted run of the
    same identity is kept as it is, and the caller must verify its content; its records are in the subfolder `RESUME`,
    which is removed before publishing. An interrupt then leaves the temporary directory for the next run; an error
    never does. Without `identity` a leftover is emptied.

    `sync=False` leaves everything to the kernel's writeback, as `cp` does: a kill is as harmless as ever, but a power
    cut within seconds may leave a file short under its final name (every reader here refuses a short file). Syncing
    only the small files would not help, and makes a journaling file system write the large ones out first.
    """
    with _temporary_folder(path, identity) as temporary:
        yield temporary
        if sync:  # RESUME stays until this is done: it may take minutes
            for child in temporary.rglob("*"):
                _sync(child)
        if (temporary / RESUME).exists():
            shutil.rmtree(temporary / RESUME)
        if sync:
            _sync(temporary)
        _rename(temporary, path, sync)


@contextmanager
def _temporary_folder(path: Path, identity: str | None) -> Iterator[Path]:
    """The locked temporary folder of `path`: resumed or emptied, and removed at the end unless an interrupt leaves it
    for the next run."""
    require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    lock = _own_directory(temporary)
    keep = False
    try:
        _resume_or_empty(temporary, identity)
        yield temporary
    except (KeyboardInterrupt, GeneratorExit):
        keep = identity is not None and (temporary / RESUME).exists()
        raise
    finally:
        if not keep and _same(temporary, lock):
            shutil.rmtree(temporary)
        os.close(lock)


def _rename(source: Path, path: Path, sync: bool) -> None:
    """Give the finished output its name, unless something appeared there meanwhile."""
    require_absent(path)
    os.rename(source, path)
    if sync:
        _sync(path.parent)


def is_leftover(path: Path, identity: str | None) -> bool:
    """Whether an unfinished run of this identity for `path` left something that the next run resumes from."""
    return _is_signed(_temporary(path), identity)


def _is_signed(temporary: Path, identity: str | None) -> bool:
    signature = temporary / RESUME / "identity"
    return identity is not None and signature.is_file() and signature.read_text() == identity


def partial_bytes(path: Path) -> int:
    """Bytes on disk left by an unfinished run for `path`; the next run reuses or frees them."""
    found = _temporary(path)
    return sum(f.stat().st_blocks * 512 for f in found.rglob("*") if f.is_file()) if found.is_dir() else 0


def _own_directory(temporary: Path) -> int:
    """Create or take over a temporary directory, locked; returns the descriptor that holds the lock."""
    if temporary.is_symlink():
        raise BadInput(
            f"{temporary} is a link",
            expected="no file of that name, or the leftover of an earlier run",
            remedy="remove the link, or choose another -o",
        )
    temporary.mkdir(exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _same(temporary, lock):
            raise BlockingIOError(errno.EAGAIN, "renamed by another run")
    except BlockingIOError as exc:
        os.close(lock)
        raise BadInput(
            f"another run is writing {temporary.name.removeprefix('.').removesuffix('.partial')} now",
            expected="one run per output",
            actual=f"{temporary} is locked",
            remedy="wait for it, or choose another -o",
        ) from exc
    return lock


def _resume_or_empty(temporary: Path, identity: str | None) -> None:
    """Keep a leftover of this identity; empty any other and, with an identity, sign the directory with it."""
    if _is_signed(temporary, identity):
        return
    signature = temporary / RESUME / "identity"
    for child in temporary.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    if identity is not None:
        signature.parent.mkdir()
        signature.write_text(identity)


def _same(path: Path, fd: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
