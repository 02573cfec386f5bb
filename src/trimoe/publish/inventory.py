"""Files of a folder to publish, and the reasons not to publish it, from the files and manifests alone.

Invariants: only file types of a model repository are taken; every other file is named with the reason. A link out of
the folder, or a text file with the login token in it, stops everything. A folder that its own manifests mark as not
publishable is refused, and no option overrides that. Not guaranteed: that a score is right; `trimoe audit` checks that.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, Refused
from trimoe.heal.manifest import HEALED
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST

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
TEXT_LIMIT = 4 << 20  # bytes; a larger file is not hand-written text


@dataclass(frozen=True)
class LocalFile:
    """`name` is the path inside the repository; `reason` says why it is left out, empty if it is published."""

    name: str
    path: Path
    size: int
    reason: str = ""


@dataclass(frozen=True)
class Digest:
    """The two ids by which a hub knows a file: sha256 of its bytes (large files) and git's blob id (all others)."""

    sha256: str
    blob: str


def inventory(folder: Path) -> list[LocalFile]:
    """All files of a folder: weights first, README.md last. Raises `BadInput` without weights or for a link outside."""
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
        raise BadInput(f"{folder} has no weight files", expected="*.safetensors or *.gguf files")
    return sorted(found, key=lambda f: (f.name == "README.md", not f.name.endswith(WEIGHTS), f.name))


def _reason(name: str) -> str:
    base = name.rpartition("/")[2]
    if base.endswith(NUMBERS_END):
        return "queries behind the card; they contain local paths"
    if base in NAMES or base.startswith("Modelfile"):
        return ""
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden: unfinished or private"
    return "" if base.endswith(KINDS) else "not a file type of a model repository"


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
    """Raise `Refused` with every reason for which the folder's own manifests mark it as not publishable."""
    reasons = [*_healed(folder), *_ladder(folder), *_card(folder)]
    if reasons:
        raise Refused(
            f"{folder} is not publishable",
            expected="manifests that report no failed or missing check",
            actual="; ".join(reasons),
            remedy="make it again so that the checks pass; no option overrides this",
        )


def _healed(folder: Path) -> Iterator[str]:
    manifest = _read(folder / MANIFEST)
    if manifest.get("kind") != HEALED:
        return
    heal = (manifest.get("facts") or {}).get("heal") or {}
    for step in [*(heal.get("earlier") or []), heal]:
        if step.get("publishable") is not True:
            reasons = ", ".join(map(str, step.get("reasons") or [])) or "its record does not say why"
            yield f"healing by {step.get('method', 'an unknown method')} did not improve it: {reasons}"


def _ladder(folder: Path) -> Iterator[str]:
    """Files that failed or lack their check, or have another size since. Hashes are compared when files are sent."""
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
    """Refused audit verdicts among the numbers of the card."""
    for one in _read(folder / NUMBERS).get("numbers") or []:
        arguments = one.get("arguments") or {}
        if one.get("query") == "audit" and arguments.get("what") == "verdict" and one.get("text") == "refused":
            yield f"the audit refused {arguments.get('bench')} of {arguments.get('name')}"


def require_no_secret(files: list[LocalFile], secret: str | None) -> None:
    """Raise `Refused` if a text file to publish contains the login token."""
    for file in files if secret else []:
        if not file.reason and file.size <= TEXT_LIMIT and str(secret).encode() in file.path.read_bytes():
            raise Refused(
                f"{file.path} contains the login token",
                expected="no secret in a published file",
                remedy="remove it from the file, and revoke the token",
            )


def recorded_sha256(folder: Path) -> dict[str, str]:
    """sha256 by file name, as far as ladder.json records it."""
    rows = _read(folder / "ladder.json").get("files") or []
    return {str(row["file"]): str(row["sha256"]) for row in rows if "file" in row and "sha256" in row}


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, "manifest") if path.exists() else {}
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not a manifest", expected="a JSON object", actual=json.dumps(found)[:80])
    return found
