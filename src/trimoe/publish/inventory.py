"""What of a folder goes to a repository, and what forbids it: read from the files and manifests alone.

Invariants: only files of kinds that a model repository holds are taken, all others are named with the reason; a link
out of the folder, and a text file that holds the login token, stop everything. A folder that its own manifests call not
publishable is refused, and no option overrides that. Not guaranteed: that a number is right; `trimoe audit` says that.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, Refused
from trimoe.heal.manifest import HEALED
from trimoe.io.publish import MANIFEST, read_json

WEIGHTS = (".gguf", ".safetensors")
KINDS = (
    *WEIGHTS,
    ".json",
    ".jinja",
    ".txt",
    ".md",
    ".toml",
    ".yaml",
    ".dat",
    ".model",
    ".tsv",
    ".png",
    ".svg",
    ".html",
)
NAMES = ("LICENSE", "NOTICE", "Modelfile", ".gitattributes")
NUMBERS = "README.numbers.json"
NUMBERS_END = ".numbers.json"
RECORDS = ".trimoe-publish"
BLOCK = 1 << 20
TEXT_LIMIT = 4 << 20  # bytes; a larger file is no hand-written text


@dataclass(frozen=True)
class LocalFile:
    """`name` is the path inside the repository; `reason` why it is left out, empty if it goes out."""

    name: str
    path: Path
    size: int
    reason: str = ""


@dataclass(frozen=True)
class Digest:
    """What a hub says of a file: sha256 of its bytes (large files), git's blob id (all others)."""

    sha256: str
    blob: str


def inventory(folder: Path) -> list[LocalFile]:
    """All files of a folder, weights first, README.md last. `BadInput` for no weights and for links out of it."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", expected="a checkpoint or a folder of GGUF files")
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise BadInput(
                f"{path} is a link out of the folder",
                expected="files of this folder only",
                actual=str(path.resolve()),
                remedy="copy the file, or remove the link",
            )
        if path.is_file() and not name.startswith(f"{RECORDS}/"):
            found.append(LocalFile(name, path, path.stat().st_size, _reason(name)))
    if not any(f.name.endswith(WEIGHTS) and not f.reason for f in found):
        raise BadInput(f"{folder} holds no weights", expected="*.safetensors or *.gguf files")
    return sorted(found, key=lambda f: (f.name == "README.md", not f.name.endswith(WEIGHTS), f.name))


def _reason(name: str) -> str:
    base = name.rpartition("/")[2]
    if base.endswith(NUMBERS_END):
        return "queries behind a card; they name files of this machine"
    if base in NAMES or base.startswith("Modelfile"):
        return ""
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden: unfinished or private"
    return "" if base.endswith(KINDS) else "not a kind of file that a model repository holds"


def digest(path: Path, size: int, report: Callable[[int], None] = lambda done: None) -> Digest:
    """Both hashes of a file in one pass."""
    sha256, blob, done = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), 0
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            sha256.update(block)
            blob.update(block)
            done += len(block)
            report(done)
    if done != size:
        raise BadInput(f"{path} changed while it was read", expected=f"{size} bytes", actual=f"{done} bytes")
    return Digest(sha256.hexdigest(), blob.hexdigest())


def require_publishable(folder: Path) -> None:
    """Raise `Refused` (exit 5) for what the folder's own manifests call not publishable, with every reason."""
    reasons = [*_healed(folder), *_ladder(folder), *_card(folder)]
    if reasons:
        raise Refused(
            f"{folder} is not publishable",
            expected="manifests without a mark against it",
            actual="; ".join(reasons),
            remedy="make it anew until the check passes; no option overrides this",
        )


def _healed(folder: Path) -> Iterator[str]:
    manifest = _read(folder / MANIFEST)
    if manifest.get("kind") != HEALED:
        return
    heal = (manifest.get("facts") or {}).get("heal") or {}
    for step in [*(heal.get("earlier") or []), heal]:
        if step.get("publishable") is not True:
            reasons = ", ".join(map(str, step.get("reasons") or [])) or "its record does not say that it is"
            yield f"healing by {step.get('method', 'an unknown method')} made it no better: {reasons}"


def _ladder(folder: Path) -> Iterator[str]:
    """A file that failed, was not checked, or was changed since (by size; its hash is compared when it is sent)."""
    rows = _read(folder / "ladder.json").get("files") or []
    for row in rows:
        smoke = row.get("smoke") or {}
        if smoke.get("failed"):
            yield f"{row.get('file')} failed the smoke test: {smoke['failed']}"
        elif not smoke or smoke.get("unchecked"):
            yield f"{row.get('file')} was not checked: {smoke.get('unchecked') or 'the ladder had no smoke test'}"
    for row in rows:
        path = folder / str(row.get("file"))
        if path.is_file() and path.stat().st_size != row.get("file_bytes"):
            yield f"{path.name} is not the file that was checked"


def _card(folder: Path) -> Iterator[str]:
    """Audit verdicts that the card was written with."""
    for one in _read(folder / NUMBERS).get("numbers") or []:
        arguments = one.get("arguments") or {}
        if one.get("query") == "audit" and arguments.get("what") == "verdict" and one.get("text") == "refused":
            yield f"the audit refused {arguments.get('bench')} of {arguments.get('name')}"


def require_no_secret(files: list[LocalFile], secret: str | None) -> None:
    """Raise `Refused` when a text file that would go out holds the login token."""
    for file in files if secret else []:
        if not file.reason and file.size <= TEXT_LIMIT and str(secret).encode() in file.path.read_bytes():
            raise Refused(
                f"{file.path} holds the login token",
                expected="no secret in a file that is published",
                remedy="remove it from the file, and revoke the token",
            )


def recorded_sha256(folder: Path) -> dict[str, str]:
    """File -> sha256, where a manifest of this program says it."""
    rows = _read(folder / "ladder.json").get("files") or []
    return {str(row["file"]): str(row["sha256"]) for row in rows if "file" in row and "sha256" in row}


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, "manifest") if path.exists() else {}
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not a manifest", expected="a JSON object", actual=json.dumps(found)[:80])
    return found
