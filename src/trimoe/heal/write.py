"""Writes a healed checkpoint, and refuses one that is worse than before.

Invariants: all other tensors and files are byte-identical copies; the output appears when it is complete; the same
input gives the same bytes; the manifest names every changed tensor with its hashes before and after. Not guaranteed:
better generation (evaluate it); a healed model is never certified as a pure cut.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError, Refused
from trimoe.heal.edit import Edit
from trimoe.heal.manifest import HEALED, previous_heals
from trimoe.io.atomic import publish_dir, require_absent, require_space
from trimoe.io.copying import Copier
from trimoe.io.hashing import hash_range
from trimoe.io.manifest import write_manifest
from trimoe.io.progress import Progress
from trimoe.io.writing import write_files
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.files import INDEX, METADATA, copy_files, other_files, watch_directory
from trimoe.model.safetensors import TensorInfo
from trimoe.model.shards import read_index

BLOCK = 4 << 20
_HEADER_SPACE = 1 << 20  # bytes reserved per file for its header, for the check of free space


@dataclass
class Healing:
    """Changes that are ready to be written. `measured` is None if the divergence was not measured."""

    base: Checkpoint
    pruned: Checkpoint
    method: str
    settings: dict[str, Any]
    edits: list[Edit]
    measured: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def worse(self) -> bool:
        """Whether the divergence on held-out text rose, or is not a number."""
        if self.measured is None:
            return False
        return not self.measured["kl_after"] <= self.measured["kl_before"]

    @property
    def reasons(self) -> list[str]:
        """Why the result is not publishable; empty if it is."""
        if self.measured is None:
            return ["the divergence from the unpruned model was not measured"]
        before, after = self.measured["kl_before"], self.measured["kl_after"]
        return [f"KL on held-out text rose from {before:.6g} to {after:.6g} nats per token"] if self.worse else []


def require_related(base: Checkpoint, pruned: Checkpoint) -> None:
    """Raise `CheckpointError` unless `pruned` can be a prune of `base`: same family, layers and untouched tensors."""
    mine = {n: (t.dtype, t.shape) for n, t in base.index.items() if n not in base.expert_tensors}
    other = {n: (t.dtype, t.shape) for n, t in pruned.index.items() if n not in pruned.expert_tensors}
    if base.family.name != pruned.family.name or mine != other or pruned.num_experts > base.num_experts:
        wrong = min((n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n)), default=base.family.name)
        raise CheckpointError(
            f"{pruned.path} is not a prune of {base.path}",
            expected=f"{wrong}: {mine.get(wrong)}",
            actual=str(other.get(wrong)),
            remedy="give the unpruned model first, then its prune",
        )


def gate(healing: Healing, out: Path, *, keep_worse: bool) -> None:
    """Raise `Refused` for a result that is not publishable, unless `keep_worse`."""
    if healing.reasons and not keep_worse:
        raise Refused(
            f"{out} was not written: {healing.reasons[0]}",
            expected="a divergence from the unpruned model that does not rise",
            remedy="use another method or factor; --keep-worse writes it anyway, marked as not publishable",
        )


def write_healed(
    healing: Healing, out: Path, *, keep_worse: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Apply the gate, write the healed checkpoint and return its record.

    Raises `Refused` (see `gate`), `BadInput` if `out` exists, `MissingPrerequisite` for too little disk space.
    """
    gate(healing, out, keep_worse=keep_worse)
    require_absent(out)
    pruned = healing.pruned
    watch = watch_directory(pruned.path, "healed")
    edits = {edit.info.name: edit for edit in healing.edits}
    shards = _shards(pruned)
    others, _ = other_files(pruned.path, pruned.index)
    needed = pruned.nbytes + sum(f.stat().st_size for f in others) + _HEADER_SPACE * len(shards)
    require_space(out, needed)
    sizes = {name: max(t.end for t in tensors) for name, tensors in shards.items()}
    files = {name: (sizes[name], partial(_append, tensors, edits)) for name, tensors in shards.items()}
    with publish_dir(out) as folder:
        written = write_files(folder, files, progress=progress)
        copy_files(others, pruned.path, folder)
        for name in ("config.json", INDEX, METADATA):
            if (pruned.path / name).exists():
                shutil.copyfile(pruned.path / name, folder / name)
        record = _record(healing, read_index(folder))
        inputs = {
            "base": healing.base.fingerprint,
            "pruned": pruned.fingerprint,
            "method": healing.method,
            **healing.settings,
        }
        write_manifest(folder, HEALED, inputs, written.hashes(folder), {"heal": record})
        watch.require_unchanged()
    return record


def _record(healing: Healing, index: dict[str, TensorInfo]) -> dict[str, Any]:
    """The section `heal` of the manifest. Tensors whose bytes stayed the same are left out."""
    tensors = []
    for edit in healing.edits:
        before, after = tensor_hash(edit.info), tensor_hash(index[edit.info.name])
        if before == after:
            continue
        row: dict[str, Any] = {
            "tensor": edit.info.name,
            "layer": edit.layer,
            "xxh3_128_before": before,
            "xxh3_128_after": after,
        }
        row |= {} if edit.factor is None else {"factor": edit.factor}
        tensors.append(row | ({"change": edit.note} if edit.note else {}))
    return {
        "method": healing.method,
        "settings": healing.settings,
        "tensors": tensors,
        "measured": healing.measured,
        **healing.details,
        "publishable": not healing.reasons,
        "reasons": healing.reasons,
        "earlier": previous_heals(healing.pruned.path),
    }


def tensor_hash(info: TensorInfo) -> str:
    """xxh3-128 of a tensor's bytes."""
    return hash_range(info.file, info.start, info.nbytes)


def _shards(model: Checkpoint) -> dict[str, list[TensorInfo]]:
    """File name -> its tensors in the order of their bytes."""
    shards: dict[str, list[TensorInfo]] = {}
    for info in sorted(model.index.values(), key=lambda t: (t.file.name, t.start)):
        shards.setdefault(info.file.name, []).append(info)
    return shards


def _append(tensors: list[TensorInfo], edits: dict[str, Edit], copier: Copier) -> Iterator[int]:
    """One file: the source's bytes except for the edited tensors."""
    source = tensors[0].file
    yield from copier.append(source, [(0, tensors[0].start)])  # the header: no type, shape or offset changes
    for info in tensors:
        edit = edits.get(info.name)
        if edit is None:
            yield from copier.append(source, [(info.start, info.end)])
            continue
        with source.open("rb") as handle:
            for at in range(0, info.nbytes, BLOCK):
                handle.seek(info.start + at)
                block = handle.read(min(BLOCK, info.nbytes - at))
                copier.write(edit.apply(block, at))
                yield len(block)
    copier.unchanged()
