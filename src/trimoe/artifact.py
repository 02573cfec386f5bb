"""How trimoe writes: canonical bytes, content hashes, publish by rename.

Invariants: nothing appears under its final name before it is complete and synced; a kill leaves at most a hidden
temporary sibling, which the next run of the same command replaces. Not guaranteed: atomicity across file systems.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, MissingPrerequisite


def canonical_json(value: Any) -> bytes:
    """The one JSON form that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_absent(path: Path) -> None:
    """Refuse to overwrite: `BadInput` if `path` exists."""
    if path.exists() or path.is_symlink():
        raise BadInput(
            f"output {path} exists already", expected="a path that does not exist", actual="it exists",
            remedy="choose another -o, or remove it first",
        )  # fmt: skip


def require_space(path: Path, needed: int) -> None:
    """Raise `MissingPrerequisite` unless the file system of `path` has `needed` bytes free (plus 16 MiB)."""
    where = path.absolute()
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    if free < needed + (16 << 20):
        raise MissingPrerequisite(
            f"not enough disk space for {path}", expected=f"{needed:,} bytes", actual=f"{free:,} bytes free in {where}",
            remedy="free some space or choose another -o",
        )  # fmt: skip


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


@contextmanager
def publish_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling to write; on success syncs and renames it to `path`, on error removes it."""
    if not overwrite:
        require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def publish_dir(path: Path) -> Iterator[Path]:
    """The same for a directory; a leftover of a killed run is removed first."""
    require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for child in temporary.rglob("*"):
            _sync(child)
        _sync(temporary)
        os.rename(temporary, path)
        _sync(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_json(path: Path, value: Any, *, overwrite: bool = False) -> None:
    """Publish readable JSON (indented, sorted, newline at the end)."""
    with publish_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str, error: type[BadInput] = BadInput) -> Any:
    """Parse a user's JSON file, or raise `error` naming `what` it should have been."""
    try:
        return json.loads(path.read_bytes())
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
