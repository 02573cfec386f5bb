"""How trimoe writes: canonical bytes, content hashes, publish by rename.

Invariants: nothing appears under its final name before it is complete and, unless a caller leaves that to the kernel,
synced; a kill leaves at most a hidden temporary sibling. The next run for the same output takes it over: it goes on
from a leftover of the same identity (after verifying it, which is the caller's part) and empties any other. Not
guaranteed: atomicity across file systems.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimoe import __version__
from trimoe.errors import BadInput, MissingPrerequisite

MANIFEST = "trimoe.json"  # beside the files of a directory artifact
RESUME = ".resume"  # inside a temporary directory: what a later run needs to go on; removed before publishing


def canonical_json(value: Any) -> bytes:
    """The one JSON form that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON form."""
    return sha256_bytes(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_absent(path: Path) -> None:
    """Refuse to overwrite: `BadInput` if `path` exists, or can never exist."""
    try:
        there = path.exists() or path.is_symlink()
        _temporary(path).exists()
    except OSError as exc:
        raise BadInput(
            f"output {str(path)[:80]} cannot be made",
            expected="a name that the file system can hold",
            actual=exc.strerror or str(exc),
            remedy="choose a shorter -o",
        ) from exc
    if there:
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
    if free < needed + (16 << 20):
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
    """Yields a temporary sibling to write; on success syncs and renames it to `path`, on error removes it.

    `sync=False` is for what belongs to files that are not synced either (see `publish_dir`)."""
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
    """As `publish_file`, for files that take long: written inside a hidden folder that a living run holds a lock on.

    Yields the place of the file in that folder. A leftover of a killed run is emptied first, or continued if it is of
    the same `identity`; that and `sync` are as in `publish_dir`.
    """
    require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary(path)
    lock = _own_directory(folder)
    keep = False
    try:
        _continue_or_empty(folder, identity)
        yield folder / path.name
        if sync:
            _sync(folder / path.name)
        require_absent(path)
        os.rename(folder / path.name, path)
        if sync:
            _sync(path.parent)
    except (KeyboardInterrupt, GeneratorExit):
        keep = identity is not None and (folder / RESUME).exists()
        raise
    finally:
        if not keep and _same(folder, lock):
            shutil.rmtree(folder)
        os.close(lock)


@contextmanager
def publish_dir(path: Path, *, sync: bool = True, identity: str | None = None) -> Iterator[Path]:
    """The same for a directory. A leftover of a killed run is emptied first; a living run holds a lock on it.

    With `identity` (a hash of all that decides the bytes) the leftover of a killed or interrupted run of the same
    identity is kept as it is, and the caller must verify what it holds; its records lie in the subfolder `RESUME`,
    which is removed before publishing. An interrupt then leaves the temporary directory for the next run; an error
    never does.

    `sync=False` leaves everything to the kernel's writeback, as `cp` does: a kill is as harmless as ever, but a power
    cut within seconds may leave a file short under its final name (every reader here refuses a short file). Syncing
    the small files alone would not help, and makes a journaling file system write the large ones out first.
    """
    require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    lock = _own_directory(temporary)
    keep = False
    try:
        _continue_or_empty(temporary, identity)
        yield temporary
        if sync:  # what a run needs to go on stays until then: this may take minutes
            for child in temporary.rglob("*"):
                _sync(child)
        if (temporary / RESUME).exists():
            shutil.rmtree(temporary / RESUME)
        if sync:
            _sync(temporary)
        require_absent(path)
        os.rename(temporary, path)
        if sync:
            _sync(path.parent)
    except (KeyboardInterrupt, GeneratorExit):
        keep = identity is not None and (temporary / RESUME).exists()
        raise
    finally:
        if not keep and _same(temporary, lock):
            shutil.rmtree(temporary)
        os.close(lock)


def is_leftover(path: Path, identity: str | None) -> bool:
    """Whether an unfinished run of this identity for `path` left something behind that the next run goes on from."""
    return _is_signed(_temporary(path), identity)


def _is_signed(temporary: Path, identity: str | None) -> bool:
    signature = temporary / RESUME / "identity"
    return identity is not None and signature.is_file() and signature.read_text() == identity


def partial_bytes(path: Path) -> int:
    """Bytes on disk of what an unfinished run for `path` left behind; the next run reuses or frees them."""
    found = _temporary(path)
    return sum(f.stat().st_blocks * 512 for f in found.rglob("*") if f.is_file()) if found.is_dir() else 0


def _own_directory(temporary: Path) -> int:
    """Create or take over a temporary directory, locked; returns the descriptor that holds the lock."""
    if temporary.is_symlink():
        raise BadInput(
            f"{temporary} is a link",
            expected="no file of that name, or what a run left behind",
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


def _continue_or_empty(temporary: Path, identity: str | None) -> None:
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


def manifest_path(path: Path) -> Path:
    """Where the manifest of an artifact is: `trimoe.json` in a directory, `NAME.manifest.json` beside a file."""
    return path / MANIFEST if path.is_dir() else path.with_name(path.name + ".manifest.json")


def write_manifest(
    path: Path,
    kind: str,
    inputs: dict[str, Any],
    files: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    *,
    sync: bool = True,
) -> None:
    """Write the manifest of an artifact: `trimoe.json` in a directory, `NAME.manifest.json` beside a file.

    `inputs` are what the artifact is a function of (hashes, options that change bytes); `identity` is their hash.
    `files` are sizes and hashes of what was written, `facts` what else was found out while making it.
    No timestamp: the same inputs give the same manifest, the file system knows when.
    """
    identity = sha256_json({"kind": kind, "inputs": inputs})
    body = {"kind": kind, "identity": identity, "inputs": inputs, "tool": f"trimoe {__version__}"}
    body |= {} if files is None else {"files": files}
    body |= {} if facts is None else {"facts": facts}
    write_json(manifest_path(path), body, overwrite=True, sync=sync)


def write_json(path: Path, value: Any, *, overwrite: bool = False, sync: bool = True) -> None:
    """Publish readable JSON (indented, sorted, newline at the end)."""
    with publish_file(path, overwrite=overwrite, sync=sync) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(data: bytes, **options: Any) -> Any:
    """`json.loads`, except that text which cannot be written again (half a surrogate pair) is a `ValueError` too."""
    value = json.loads(data, **options)
    if rb"\u" in data:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses a key that stands twice (`ValueError`): others may read the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"a name stands twice in one object: {twice[:80]!r}")
    return found


def read_json(path: Path, what: str, error: type[BadInput] = BadInput) -> Any:
    """Parse a user's JSON file, or raise `error` naming `what` it should have been."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise error(f"{what} {path} not found", expected="an existing file", remedy="check the path") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise error(f"{what} {path} is not readable JSON", expected="a JSON document", actual=str(exc)[:200]) from exc


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
