"""Healing a cut model, in the open: scale what always runs, scale the experts, or move the router's rows.

The result is measured against the unpruned model on text that took no part, before anything is written, and a result
that is worse is refused. The manifest of the output names every changed tensor with its hashes before and after.
Invariants: bytes of all other tensors and files are copies; the output appears when it is complete; the same input
gives the same bytes. Not guaranteed: better generation (evaluate it); a healed model is never certified as a pure cut.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from trimoe.errors import CheckpointError, Refused
from trimoe.heal.edit import Edit
from trimoe.heal.manifest import HEALED, previous_heals
from trimoe.io.copying import Copier
from trimoe.io.progress import Progress
from trimoe.io.publish import publish_dir, require_absent, require_space, write_manifest
from trimoe.io.writing import write_files
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.files import METADATA, other_files, source_stamps
from trimoe.model.safetensors import TensorInfo, read_index

BLOCK = 4 << 20


@dataclass
class Healing:
    """What is to be written. `measured` is None where nothing could be measured; `worse` whether the gate is against
    it."""

    base: Checkpoint
    pruned: Checkpoint
    method: str
    settings: dict[str, Any]
    edits: list[Edit]
    measured: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def worse(self) -> bool:
        """Whether the held-out divergence did not stay or shrink. Not a number is worse."""
        if self.measured is None:
            return False
        return not self.measured["kl_after"] <= self.measured["kl_before"]

    @property
    def reasons(self) -> list[str]:
        """Why this must not be published; empty if it may."""
        if self.measured is None:
            return ["the divergence from the unpruned model was not measured"]
        before, after = self.measured["kl_before"], self.measured["kl_after"]
        return [f"KL on held-out text rose from {before:.6g} to {after:.6g} nats per token"] if self.worse else []


def require_related(base: Checkpoint, pruned: Checkpoint) -> None:
    """Raise `CheckpointError` unless `pruned` can be a cut of `base`: same family, layers and untouched tensors."""
    mine = {n: (t.dtype, t.shape) for n, t in base.index.items() if n not in base.expert_tensors}
    other = {n: (t.dtype, t.shape) for n, t in pruned.index.items() if n not in pruned.expert_tensors}
    if base.family.name != pruned.family.name or mine != other or pruned.num_experts > base.num_experts:
        wrong = min((n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n)), default=base.family.name)
        raise CheckpointError(
            f"{pruned.path} is no cut of {base.path}",
            expected=f"{wrong}: {mine.get(wrong)}",
            actual=str(other.get(wrong)),
            remedy="give the model that was pruned first",
        )


def gate(healing: Healing, out: Path, *, keep_worse: bool) -> None:
    """Raise `Refused` (exit 5) for what must not be published, unless `keep_worse`."""
    if healing.reasons and not keep_worse:
        raise Refused(
            f"{out} was not written: {healing.reasons[0]}",
            expected="at most as far from the unpruned model as before",
            remedy="use another method or factor; --keep-worse writes it, marked as not publishable",
        )


def publish(
    healing: Healing, out: Path, *, keep_worse: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Gate, then write the healed checkpoint. Returns its record. Raises as `gate`, and what writing raises."""
    gate(healing, out, keep_worse=keep_worse)
    require_absent(out)
    pruned = healing.pruned
    stamps = source_stamps(pruned.path)
    edits = {edit.info.name: edit for edit in healing.edits}
    shards = _shards(pruned)
    files, _ = other_files(pruned.path)
    require_space(out, pruned.nbytes + sum(f.stat().st_size for f in files) + (1 << 20) * len(shards))
    sizes = {name: max(t.end for t in tensors) for name, tensors in shards.items()}
    with publish_dir(out) as folder:
        written = write_files(
            folder,
            {name: (sizes[name], partial(_append, tensors, edits)) for name, tensors in shards.items()},
            progress=progress,
        )
        for file in files:
            target = folder / file.relative_to(pruned.path)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
        for name in ("config.json", "model.safetensors.index.json", METADATA):
            if (pruned.path / name).exists():
                shutil.copyfile(pruned.path / name, folder / name)
        record = _record(healing, read_index(folder))
        inputs = {
            "base": healing.base.fingerprint,
            "pruned": pruned.fingerprint,
            "method": healing.method,
            **healing.settings,
        }
        hashes = {n: {"bytes": (folder / n).stat().st_size, "xxh3_128": d} for n, d in sorted(written.digests.items())}
        write_manifest(folder, HEALED, inputs, hashes, {"heal": record})
        if source_stamps(pruned.path) != stamps:
            raise CheckpointError(
                f"{pruned.path} was modified while it was healed",
                expected="a source at rest",
                remedy="wait until nothing writes to it and run again",
            )
    return record


def _record(healing: Healing, index: dict[str, TensorInfo]) -> dict[str, Any]:
    tensors = []
    for edit in healing.edits:
        before, after = digest(edit.info), digest(index[edit.info.name])
        if before == after:
            continue
        row = {"tensor": edit.info.name, "layer": edit.layer, "xxh3_128_before": before, "xxh3_128_after": after}
        tensors.append(
            row
            | ({"factor": edit.factor} if edit.factor is not None else {})
            | ({"change": edit.note} if edit.note else {})
        )
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


def digest(info: TensorInfo) -> str:
    """xxh3-128 of a tensor's bytes, streamed."""
    hasher, at = xxhash.xxh3_128(), 0
    with info.file.open("rb") as handle:
        handle.seek(info.start)
        while at < info.nbytes:
            block = handle.read(min(BLOCK, info.nbytes - at))
            if not block:
                raise CheckpointError(f"tensor {info.name} in {info.file} ends early")
            hasher.update(block)
            at += len(block)
    return hasher.hexdigest()


def _shards(model: Checkpoint) -> dict[str, list[TensorInfo]]:
    """File name -> its tensors in the order of their bytes."""
    shards: dict[str, list[TensorInfo]] = {}
    for info in sorted(model.index.values(), key=lambda t: (t.file.name, t.start)):
        shards.setdefault(info.file.name, []).append(info)
    return shards


def _append(tensors: list[TensorInfo], edits: dict[str, Edit], copier: Copier) -> Iterator[int]:
    """One file: the source's bytes, but for the edited tensors."""
    source = tensors[0].file
    yield from copier.append(source, [(0, tensors[0].start)])  # the header: no type, shape or place changes
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
