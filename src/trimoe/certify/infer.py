"""The drop map of a prune that somebody else made, from hashes of expert slices; and what else they changed.

Invariants: streamed, a few MiB of memory; an expert is recognised by the bytes of all its tensors together, so a
changed router row or a constant scale vector does not confuse it. Experts that are identical in every tensor cannot
be told apart; then the lowest unused id is taken. Not guaranteed: recognising experts whose every tensor was changed
or requantized.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trimoe.certify.certificate import Check, Finding
from trimoe.certify.files import check_config, check_files, read_config
from trimoe.certify.tensors import (
    BLOCK,
    Expected,
    Index,
    check_cut,
    check_tensors,
    check_untouched,
    expected_tensors,
    fit_map,
    is_not_compared,
    row_layout,
)
from trimoe.choose.dropmap import DropMap
from trimoe.errors import MapError
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.safetensors import TensorInfo, read_bytes, read_index


@dataclass
class Recovery:
    """What the experts' bytes say. `order[layer]` is the original id at each kept position, None if unrecognised."""

    num_experts: int
    order: dict[int, list[int | None]] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Why this is not a drop map; empty if it is one."""
        found = []
        for layer, ids in self.order.items():
            known = [i for i in ids if i is not None]
            unknown = [p for p, i in enumerate(ids) if i is None]
            if not ids:
                found.append(f"layer {layer} has no expert tensors that fit the original's")
            elif unknown:
                found.append(f"layer {layer}: the experts at positions {unknown[:8]} are none of the original's")
            elif len(set(known)) != len(known):
                twice = min(i for i in known if known.count(i) > 1)
                found.append(f"layer {layer}: original expert {twice} appears twice")
        return found

    @property
    def reordered(self) -> list[int]:
        """Layers whose kept experts are not in ascending order."""
        return [
            layer for layer, ids in self.order.items() if (known := [i for i in ids if i is not None]) != sorted(known)
        ]

    def drop_map(self) -> DropMap:
        """The map; raises `MapError` if the experts do not give one."""
        if self.problems:
            raise MapError(
                "no drop map leads from the original to this model",
                actual="; ".join(self.problems[:3]),
                remedy="check that the first model is the one that was pruned",
            )
        drop = {layer: tuple(e for e in range(self.num_experts) if e not in ids) for layer, ids in self.order.items()}
        return DropMap(drop, self.num_experts)


@dataclass
class Inference:
    """Result of `infer_map`. `map` is None if there is none (`problems` says why); `changes` is what else differs."""

    map: DropMap | None
    problems: list[str]
    changes: list[Finding]
    scaled: dict[str, float] = field(default_factory=dict)
    """Untouched-looking tensors that are the original's times a factor: name -> factor."""

    @property
    def exact(self) -> bool:
        """The pruned model is the original minus experts and nothing else."""
        return self.map is not None and not self.changes


def infer_map(base: Path | str, pruned: Path | str, *, progress: Progress | None = None) -> Inference:
    """Recover the map that leads from `base` to `pruned`, and list everything besides experts that changed.

    Raises `CheckpointError` if either is not a checkpoint.
    """
    original, pruned = open_checkpoint(base), Path(pruned)
    config, index = read_config(pruned), read_index(pruned)
    recovery = recover(original, index, progress)
    if recovery.problems:
        return Inference(None, recovery.problems, [])
    drop_map = recovery.drop_map()
    try:
        drop_map = fit_map(original, drop_map)
    except MapError as exc:
        return Inference(None, [f"{exc.subject}: {exc.actual}"], [])
    expected = expected_tensors(original, drop_map)
    checks: list[Check] = [
        check_config(original, config, drop_map),
        check_files(original, pruned, index, drop_map),
        check_tensors(expected, index, original.layer_of),
        check_untouched(expected, index, progress),
        check_cut(expected, index, progress),
    ]
    changes = [
        Finding(
            subject=f"layer {layer}: the kept experts stand in another order",
            actual=str(recovery.order[layer]),
            layer=layer,
        )
        for layer in recovery.reordered
    ]
    changes += [f for c in checks for f in c.findings if not is_not_compared(f)]
    scaled = {}
    for change in changes:
        want, have = expected.get(change.tensor or ""), index.get(change.tensor or "")
        if want is not None and have is not None and (want.dtype, want.shape) == (have.dtype, have.shape):
            factor = scale_factor(want.source, have) if want.kept is None else _row_factor(want, have)
            if factor is not None:
                scaled[want.name] = factor
    drop_map = DropMap(drop_map.drop, drop_map.num_experts, {"recipe": "inferred", "model": original.fingerprint})
    return Inference(drop_map, [], changes, scaled)


def recover(base: Checkpoint, pruned: Index, progress: Progress | None = None) -> Recovery:
    """The original expert at every position of every layer of `pruned`, by hashes of slices."""
    recovery = Recovery(base.num_experts)
    groups = _groups(base)
    total, done = sum(t.info.nbytes for group in groups.values() for t in group), 0
    for layer in base.moe_layers:
        votes: dict[int, dict[int, set[str]]] = {}
        signatures: dict[int, list[bytes]] = {e: [] for e in range(base.num_experts)}
        for template in sorted(t for number, t in groups if number == layer):
            group = groups[layer, template]
            by_digest: dict[bytes, list[int]] = {}
            for expert, part in _originals(group):
                digest = digest_slice(part)
                by_digest.setdefault(digest, []).append(expert)
                signatures[expert].append(digest)
            for position, part in _candidates(group[0], pruned, base.num_experts):
                ballot = votes.setdefault(position, {})
                for expert in by_digest.get(digest_slice(part), ()):
                    ballot.setdefault(expert, set()).add(template)
            done += sum(t.info.nbytes for t in group)
            if progress is not None:
                progress(done, total, "hashing experts")
        recovery.order[layer] = elect([votes.get(p, {}) for p in range(max(votes, default=-1) + 1)], signatures)
    return recovery


def elect(votes: list[dict[int, set[str]]], signatures: dict[int, list[bytes]]) -> list[int | None]:
    """Per position the expert that agrees in most roles; None where none does or several different ones tie."""
    order: list[int | None] = []
    used: set[int] = set()
    for ballot in votes:
        best = max((len(roles) for roles in ballot.values()), default=0)
        tied = sorted(e for e, roles in ballot.items() if len(roles) == best)
        if not tied or any(signatures[e] != signatures[tied[0]] for e in tied):
            order.append(None)
            continue
        choice = next((e for e in tied if e not in used), tied[0])
        used.add(choice)
        order.append(choice)
    return order


Slice = tuple[TensorInfo, int, int, int]  # tensor, first byte, bytes of a piece, stride between pieces (0: one piece)


def _groups(base: Checkpoint) -> dict[tuple[int, str], list[ExpertTensor]]:
    """The expert tensors of each layer by name template: one stack, or one tensor per expert in ascending order.
    Drafting blocks are left out: they follow the last layer."""
    groups: dict[tuple[int, str], list[ExpertTensor]] = {}
    for name, tensor in base.expert_tensors.items():
        if base.layer_of(name) == tensor.layer:
            groups.setdefault((tensor.layer, tensor.template), []).append(tensor)
    return groups


def _originals(group: list[ExpertTensor]) -> Iterator[tuple[int, Slice]]:
    """(expert, its slice) of a group."""
    if group[0].expert is None:
        yield from enumerate(_stack_slices(group[0].info, group[0].axis))
    for tensor in group:
        if tensor.expert is not None:
            yield tensor.expert, (tensor.info, 0, tensor.info.nbytes, 0)


def _candidates(like: ExpertTensor, pruned: Index, most: int) -> Iterator[tuple[int, Slice]]:
    """(position, slice) of what the pruned model has under the names of a group."""
    if like.expert is None:
        info = pruned.get(like.template)
        if info is not None and len(info.shape) > like.axis:
            yield from enumerate(_stack_slices(info, like.axis))
        return
    for position in range(most):
        info = pruned.get(like.renamed(position))
        if info is not None:
            yield position, (info, 0, info.nbytes, 0)


def _stack_slices(info: TensorInfo, axis: int) -> list[Slice]:
    _, row = row_layout(info, axis)
    count = info.shape[axis]
    return [(info, e * row, row, count * row) for e in range(count)]


def digest_slice(part: Slice) -> bytes:
    """sha256 over type and bytes of an expert's slice, read in blocks."""
    info, first, size, stride = part
    digest = hashlib.sha256(info.dtype.encode())
    with info.file.open("rb", buffering=0) as handle:
        at = first
        while at < info.nbytes and size:
            for block in range(at, at + size, BLOCK):
                digest.update(os.pread(handle.fileno(), min(BLOCK, at + size - block), info.start + block))
            if not stride:
                break
            at += stride
    return digest.digest()


def scale_factor(original: TensorInfo, changed: TensorInfo) -> float | None:
    """The factor alpha if `changed` is `original` x alpha up to rounding of its type, else None. Streamed.

    Least squares over all elements; accepted if what is left is at most 1 % of the norm and alpha is not 1.
    """
    if original.dtype not in ("BF16", "F16", "F32") or original.nbytes == 0:
        return None
    xx = xy = yy = 0.0
    with original.file.open("rb", buffering=0) as a, changed.file.open("rb", buffering=0) as b:
        for at in range(0, original.nbytes, BLOCK):
            length = min(BLOCK, original.nbytes - at)
            x = _floats(os.pread(a.fileno(), length, original.start + at), original.dtype)
            y = _floats(os.pread(b.fileno(), length, changed.start + at), changed.dtype)
            xx, xy, yy = xx + float(x @ x), xy + float(x @ y), yy + float(y @ y)
    return _accepted(xx, xy, yy)


def _row_factor(want: Expected, have: TensorInfo) -> float | None:
    """The factor on the kept rows of a small tensor of one value or row per expert (scales, routers)."""
    if want.dtype not in ("BF16", "F16", "F32") or want.axis != 0 or want.source.nbytes > BLOCK:
        return None
    rows = _floats(read_bytes(want.source), want.dtype).reshape(want.source.shape)[list(want.kept or ())].reshape(-1)
    return _fitted(rows, _floats(read_bytes(have), have.dtype))


def _fitted(x: np.ndarray, y: np.ndarray) -> float | None:
    return _accepted(float(x @ x), float(x @ y), float(y @ y))


def _accepted(xx: float, xy: float, yy: float) -> float | None:
    if not (np.isfinite([xx, xy, yy]).all() and xx > 0 and yy > 0):
        return None
    alpha = xy / xx
    residual = max(yy - alpha * xy, 0.0) / yy
    return round(alpha, 6) if residual <= 1e-4 and abs(alpha - 1) > 1e-3 else None


def _floats(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype(np.float64)
