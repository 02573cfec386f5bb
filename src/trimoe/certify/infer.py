"""Infer the drop map of somebody else's prune from its experts' bytes, and list what else was changed.

For GGUF both files must have the same quantization, because a requantized expert has other bytes. What cannot be
recognised: see `recovery`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from trimoe.certify.certificate import Finding
from trimoe.certify.certify import open_pair
from trimoe.certify.compare import compare_bytes
from trimoe.certify.pair import ModelPair
from trimoe.certify.recovery import Recovery
from trimoe.certify.tensors import check_cut, check_tensors, check_untouched, is_not_compared
from trimoe.choose.dropmap import DropMap
from trimoe.errors import MapError
from trimoe.io.atomic import require_absent
from trimoe.io.progress import Progress


@dataclass
class Inference:
    """Result of `infer_map`. `map` is None if there is none (`problems` says why); `changes` is what else differs."""

    map: DropMap | None
    problems: list[str]
    changes: list[Finding]
    scaled: dict[str, float] = field(default_factory=dict)
    """Changed tensors that are the original's times a factor: name -> factor. Not looked for in GGUF models."""

    @property
    def exact(self) -> bool:
        """The pruned model is the original minus experts and nothing else."""
        return self.map is not None and not self.changes


def infer_map(
    original: str | os.PathLike[str],
    pruned: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Inference:
    """Recover the map that leads from `original` to `pruned`, and list everything besides experts that changed.

    Both are checkpoint directories or both GGUF models. A map that was found is written to `out`, if given. Raises
    `CheckpointError` if either is not a model or is written to meanwhile, `BadInput` if `out` exists.

    >>> found = trimoe.infer_map(model, small)
    >>> found.map.drop == drop.drop, found.exact
    (True, True)
    """
    if out is not None:
        require_absent(Path(out))
    pair = open_pair(original, pruned, logits=False)
    result = _infer(pair, progress)
    pair.watch.require_unchanged()
    if out is not None and result.map is not None:
        result.map.save(Path(out))
    return result


def _infer(pair: ModelPair, progress: Progress | None) -> Inference:
    if errors := pair.read():
        raise errors[0]
    recovery = pair.recover(progress)
    if recovery.problems:
        return Inference(None, recovery.problems, [])
    try:
        drop_map = pair.fit(recovery.drop_map())
    except MapError as exc:
        return Inference(None, [f"{exc.subject}: {exc.actual}"], [])
    expected = pair.expected(drop_map)
    compared = compare_bytes(expected, pair.index, progress=progress)
    checks = [
        *pair.check_settings(drop_map),
        check_tensors(expected, pair.index, pair.layer_of),
        check_untouched(expected, pair.index, compared),
        check_cut(expected, pair.index, compared),
    ]
    changes = [*_reordered(recovery), *(f for c in checks for f in c.findings if not is_not_compared(f))]
    scaled = {}
    for change in changes:
        want, have = expected.get(change.tensor or ""), pair.index.get(change.tensor or "")
        if want is not None and have is not None and (want.dtype, want.shape) == (have.dtype, have.shape):
            factor = pair.factor(want, have)
            if factor is not None:
                scaled[want.name] = factor
    metadata = {"recipe": "inferred", "model": pair.original.fingerprint}
    return Inference(DropMap(drop_map.drop, drop_map.num_experts, metadata, drop_map.narrow), [], changes, scaled)


def _reordered(recovery: Recovery) -> list[Finding]:
    return [
        Finding(
            subject=f"layer {layer}: the kept experts are in another order",
            actual=str(recovery.order[layer]),
            layer=layer,
        )
        for layer in recovery.reordered
    ]
