"""Checks the heal record of a checkpoint against its bytes.

A healed model is never proven: a true record makes the certificate incomplete and names each changed tensor, a false
one refutes it.
"""

from typing import Any

from trimoe.certify.certificate import Check, Finding, make_check
from trimoe.heal.manifest import changed_tensors
from trimoe.io.hashing import hash_range
from trimoe.model.safetensors import TensorInfo

HEAL_CHECK = "healed"
CLAIM = "nothing besides experts was changed"


def check_heal(record: dict[str, Any], index: dict[str, TensorInfo]) -> Check:
    """Not run (so the verdict is never `proven`) if the record matches the bytes, failed if not."""
    findings, described = [], []
    for name, changes in changed_tensors(record).items():
        last = changes[-1]
        info = index.get(name)
        actual = None if info is None else hash_range(info.file, info.start, info.nbytes)
        if actual != last.get("xxh3_128_after"):
            findings.append(
                Finding(
                    subject=f"tensor {name} is not what the heal record says",
                    tensor=name,
                    layer=last.get("layer"),
                    expected=f"xxh3-128 {last.get('xxh3_128_after')}",
                    actual=f"xxh3-128 {actual}" if actual else "no such tensor",
                )
            )
        described.append(f"{name} ({', '.join(map(_described, changes))})")
    detail = f"healed: {len(described)} tensors besides experts were changed: {'; '.join(described)}"
    return make_check(HEAL_CHECK, CLAIM, detail, findings, not_run=True)


def _described(change: dict[str, Any]) -> str:
    return f"times {change['factor']:.6g}" if isinstance(change.get("factor"), int | float) else "router rows moved"
