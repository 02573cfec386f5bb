"""A large file with a manifest of its inputs and hash, so that a rerun can reuse it safely.

The manifest (NAME.manifest.json) is written before the file gets its final name, so a file without one was not made
here. Reuse needs the same inputs and the same sha256; existence is never enough. Threads, paths and parallelism are not
inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe import __version__
from trimoe.errors import BadInput
from trimoe.io.atomic import publish_large_file
from trimoe.io.canonical import sha256_file, sha256_json
from trimoe.io.jsonfile import read_json, write_json


@dataclass
class Output:
    """A file being made: write it to `path` and describe it in `facts` (sha256 and size are added)."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


def manifest_path(path: Path) -> Path:
    """Path of a file's manifest."""
    return path.with_name(path.name + ".manifest.json")


def reuse(path: Path, kind: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The recorded facts of a finished file; None if it does not exist. Raises `BadInput` if it cannot be trusted."""
    if not path.exists():
        return None
    manifest = manifest_path(path)
    if not manifest.exists():
        raise BadInput(
            f"{path} exists and has no manifest",
            expected="a file made by this command",
            actual="a file of unknown origin",
            remedy="move it away, or choose another -o",
        )
    data = read_json(manifest, "manifest")
    if not isinstance(data, dict) or data.get("identity") != _identity(kind, inputs):
        old = data.get("inputs", {}) if isinstance(data, dict) else {}
        changed = sorted(key for key in {*old, *inputs} if old.get(key) != inputs.get(key))
        raise BadInput(
            f"{path} was made from other inputs",
            expected="the same " + (", ".join(changed) or "inputs"),
            actual="it differs",
            remedy="remove it and its manifest, or choose another -o",
        )
    facts: dict[str, Any] = data.get("outputs", {})
    if path.stat().st_size != facts.get("file_bytes") or sha256_file(path) != facts.get("sha256"):
        raise BadInput(
            f"{path} was changed after it was made",
            expected=f"sha256 {facts.get('sha256')}",
            actual="other bytes",
            remedy="remove it and its manifest, and run again",
        )
    return facts


@contextmanager
def make(path: Path, kind: str, inputs: dict[str, Any]) -> Iterator[Output]:
    """Make a file under a temporary name; on success it gets its manifest, then its name."""
    with publish_large_file(path) as temporary:
        output = Output(temporary)
        yield output
        output.facts |= {"file_bytes": temporary.stat().st_size, "sha256": sha256_file(temporary)}
        rewrite(path, kind, inputs, output.facts)


def rewrite(path: Path, kind: str, inputs: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the manifest of a file; also used when facts are added later."""
    write_json(
        manifest_path(path),
        {
            "kind": kind,
            "identity": _identity(kind, inputs),
            "inputs": inputs,
            "outputs": facts,
            "tool": f"trimoe {__version__}",
        },
        overwrite=True,
    )


def _identity(kind: str, inputs: dict[str, Any]) -> str:
    return sha256_json({"kind": kind, "inputs": inputs})
