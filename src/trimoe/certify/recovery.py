"""Recognises the experts of a pruned model by hashes of their bytes.

Invariants: streamed, a few MiB of memory; an expert is recognised by the bytes of all its tensors together, so a
changed router row or a constant scale vector does not confuse it. Experts that are identical in every tensor cannot be
told apart; then the lowest unused id is taken. Not guaranteed: recognising experts whose every tensor was changed or
requantized.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from trimoe.certify.expected import row_layout
from trimoe.choose.dropmap import DropMap
from trimoe.choose.narrowing import Narrowing
from trimoe.errors import MapError
from trimoe.io.progress import Progress
from trimoe.model.safetensors import TensorInfo

BLOCK = 4 << 20


@dataclass
class Recovery:
    """What the experts' bytes say. `order[layer]` is the original id at each kept position, None if unrecognised."""

    num_experts: int
    order: dict[int, list[int | None]] = field(default_factory=dict)
    narrow: Narrowing | None = None
    """The neurons that the kept experts kept, in a model whose experts are narrower."""
    narrow_problems: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Why this is not a drop map; empty if it is one."""
        found = list(self.narrow_problems)
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
        return DropMap(drop, self.num_experts, narrow=self.narrow)


class Slice(NamedTuple):
    """The bytes of one expert in a tensor: pieces of `size` bytes, the first at `start`, one every `stride` bytes (0:
    one piece). Offsets are relative to the tensor."""

    info: TensorInfo
    start: int
    size: int
    stride: int

    def digest(self) -> bytes:
        """sha256 over the type and the bytes, read in blocks."""
        digest = hashlib.sha256(self.info.dtype.encode())
        with self.info.file.open("rb", buffering=0) as handle:
            at = self.start
            while at < self.info.nbytes and self.size:
                for block in range(at, at + self.size, BLOCK):
                    count = min(BLOCK, at + self.size - block)
                    digest.update(os.pread(handle.fileno(), count, self.info.start + block))
                if not self.stride:
                    break
                at += self.stride
        return digest.digest()


def whole(info: TensorInfo) -> Slice:
    """A tensor that belongs to one expert."""
    return Slice(info, 0, info.nbytes, 0)


def stack_slices(info: TensorInfo, axis: int) -> list[Slice]:
    """The experts of a stacked tensor in order of position. Raises `CheckpointError` if they are not whole bytes."""
    _, row = row_layout(info, axis)
    count = info.shape[axis]
    return [Slice(info, e * row, row, count * row) for e in range(count)]


@dataclass(frozen=True)
class ExpertGroup:
    """One role in one layer: the slices of the original by expert, and those of the pruned model by position."""

    role: str
    nbytes: int
    """Of the original's tensors."""
    originals: Iterable[tuple[int, Slice]]
    candidates: Iterable[tuple[int, Slice]]


def recover(num_experts: int, layers: Mapping[int, list[ExpertGroup]], progress: Progress | None = None) -> Recovery:
    """The original expert at every position of every layer."""
    recovery = Recovery(num_experts)
    total, done = sum(group.nbytes for groups in layers.values() for group in groups), 0
    for layer, groups in layers.items():
        votes: dict[int, dict[int, set[str]]] = {}
        signatures: dict[int, list[bytes]] = {e: [] for e in range(num_experts)}
        for group in groups:
            by_digest: dict[bytes, list[int]] = {}
            for expert, part in group.originals:
                digest = part.digest()
                by_digest.setdefault(digest, []).append(expert)
                signatures[expert].append(digest)
            for position, part in group.candidates:
                ballot = votes.setdefault(position, {})
                for expert in by_digest.get(part.digest(), ()):
                    ballot.setdefault(expert, set()).add(group.role)
            done += group.nbytes
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
