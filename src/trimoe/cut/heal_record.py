"""What the manifest of a healed checkpoint says was changed, and whether that is so: for `certify`.

Invariants: a healed model is never proven to be a pure cut. A record that is true makes the certificate incomplete and
names each tensor; one that is not makes it refuted. Tensors that the record does not name get no leave.
"""

from pathlib import Path
from typing import Any

import xxhash

from trimoe.artifact import MANIFEST, read_json
from trimoe.cut.certify_data import Check, Finding, make_check
from trimoe.errors import BadInput
from trimoe.model.safetensors import TensorInfo

HEALED = "healed checkpoint"
_BLOCK = 4 << 20
HEAL_CHECK = "healed"
CLAIM = "nothing besides experts was changed"


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
        raise BadInput(f"{file} has no usable heal record", expected="facts.heal.tensors with a name and hashes each",
                       remedy="heal the pruned model again")  # fmt: skip
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


def check_heal(record: dict[str, Any], index: dict[str, TensorInfo]) -> Check:
    """Not run (so the verdict is never `proven`) if the record is true of the bytes, failed if not."""
    findings, described = [], []
    for name, changes in changed_tensors(record).items():
        last = changes[-1]
        info = index.get(name)
        actual = None if info is None else _digest(info)
        if actual != last.get("xxh3_128_after"):
            findings.append(Finding(subject=f"tensor {name} is not what the heal record says", tensor=name,
                                    layer=last.get("layer"), expected=f"xxh3-128 {last.get('xxh3_128_after')}",
                                    actual=f"xxh3-128 {actual}" if actual else "no such tensor"))  # fmt: skip
        described.append(f"{name} ({', '.join(map(_described, changes))})")
    detail = f"healed: {len(described)} tensors besides experts were changed: {'; '.join(described)}"
    return make_check(HEAL_CHECK, CLAIM, detail, findings, not_run=True)


def _described(change: dict[str, Any]) -> str:
    return f"times {change['factor']:.6g}" if isinstance(change.get("factor"), int | float) else "router rows moved"


def _digest(info: TensorInfo) -> str:
    hasher = xxhash.xxh3_128()
    with info.file.open("rb") as handle:
        handle.seek(info.start)
        for at in range(0, info.nbytes, _BLOCK):
            hasher.update(handle.read(min(_BLOCK, info.nbytes - at)))
    return hasher.hexdigest()
