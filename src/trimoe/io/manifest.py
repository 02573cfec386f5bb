"""The manifest of an artifact: what it is, what it was made from, and the hashes of its files."""

from pathlib import Path
from typing import Any

from trimoe import __version__
from trimoe.io.canonical import sha256_json
from trimoe.io.jsonfile import write_json

MANIFEST = "trimoe.json"
"""Name of the manifest in a directory artifact."""


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
    """Write the manifest of the artifact at `path`: see `manifest_path`.

    `inputs` are everything the artifact is a function of (hashes, options that change bytes); `identity` is their hash.
    `files` are sizes and hashes of the files, `facts` what was found out while making the artifact.
    No timestamp: the same inputs give the same manifest, and the file system knows when.
    """
    identity = sha256_json({"kind": kind, "inputs": inputs})
    body = {"kind": kind, "identity": identity, "inputs": inputs, "tool": f"trimoe {__version__}"}
    body |= {} if files is None else {"files": files}
    body |= {} if facts is None else {"facts": facts}
    write_json(manifest_path(path), body, overwrite=True, sync=sync)
