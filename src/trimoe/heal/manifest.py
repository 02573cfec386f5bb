"""Reads the manifest of a healed checkpoint: which tensors were changed, and how.

`certify` checks the record against the bytes. A true record makes the certificate incomplete and names each tensor, a
false one refutes it; tensors that the record does not name must be unchanged.
"""

from pathlib import Path
from typing import Any

from trimoe.errors import BadInput
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST

HEALED = "healed checkpoint"


def read_heal(folder: Path) -> dict[str, Any] | None:
    """The record of a healed checkpoint, or None. Raises `BadInput` for one that is malformed."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    manifest = read_json(file, "manifest")
    if not isinstance(manifest, dict) or manifest.get("kind") != HEALED:
        return None
    facts = manifest.get("facts")
    record = facts.get("heal") if isinstance(facts, dict) else None
    tensors = record.get("tensors") if isinstance(record, dict) else None
    good = isinstance(tensors, list) and all(
        isinstance(t, dict) and isinstance(t.get("tensor"), str) and isinstance(t.get("xxh3_128_after"), str)
        for t in tensors
    )
    earlier = record.get("earlier", []) if isinstance(record, dict) else []
    if not good or not isinstance(earlier, list) or not all(isinstance(step, dict) for step in earlier):
        raise BadInput(
            f"{file} has no usable heal record",
            expected="facts.heal.tensors with a name and hashes each",
            remedy="heal the pruned model again",
        )
    return dict(record)  # type: ignore[arg-type]


def previous_heals(folder: Path) -> list[dict[str, Any]]:
    """Records of earlier heals of a checkpoint, oldest first."""
    record = read_heal(folder)
    if record is None:
        return []
    return [*record.get("earlier", []), {k: v for k, v in record.items() if k != "earlier"}]


def changed_tensors(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tensor -> its changes, oldest first, over all recorded heals."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step in [*record.get("earlier", []), record]:
        for change in step.get("tensors", []) if isinstance(step, dict) else []:
            if isinstance(change, dict) and isinstance(change.get("tensor"), str):
                found.setdefault(change["tensor"], []).append(change)
    return found
