"""The tensors of a sharded checkpoint: what the index says, and what is in the shards.

Invariants: a tensor is taken from the file that the index names. Whatever index and shards disagree about is either
refused with the way to repair it, or read in one defined way and reported as a note.
"""

from collections.abc import Mapping
from pathlib import Path

from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.safetensors import TensorInfo, read_header, require_few_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_index(directory: Path, notes: list[str] | None = None) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint directory, in file and offset order; sharded or a single file.

    Stale copies in other shards are left out and tensors that the index does not list are taken: both are added to
    `notes`. Raises `CheckpointError`.
    """
    owners = _owners(directory)
    if owners is None:
        return _ordered(read_header(directory / SINGLE)[0])
    found: dict[str, dict[str, TensorInfo]] = {}
    for shard in sorted(set(owners.values())):
        for name, info in _ordered(read_header(directory / shard)[0]).items():
            found.setdefault(name, {})[shard] = info
        require_few_tensors(directory, len(found))
    _require_owned(directory, owners, found)
    if notes is not None:
        notes += _notes(owners, found)
    chosen = {name: places[owners.get(name) or next(iter(places))] for name, places in found.items()}
    return dict(sorted(chosen.items(), key=lambda item: (item[1].file.name, item[1].start)))


def _owners(directory: Path) -> dict[str, str] | None:
    """The index's shard of each tensor; None for a checkpoint in a single file."""
    index, single = directory / INDEX, directory / SINGLE
    if not index.exists():
        if single.exists():
            return None
        raise CheckpointError(
            f"{directory} is not a safetensors checkpoint",
            expected="config.json and model*.safetensors",
            actual=f"no {SINGLE} and no {INDEX}",
            remedy="give the directory of a Hugging Face checkpoint",
        )
    content = read_json(index, "shard index", CheckpointError, unique_keys=True)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} has no weight_map",
            expected='{"weight_map": {tensor: shard}}',
            remedy="download the index again; it belongs to the same revision as the shards",
        )
    wrong = next((name for name, shard in weight_map.items() if not isinstance(shard, str) or "\0" in shard), None)
    if wrong is not None or any(Path(shard).name != shard for shard in weight_map.values()):
        raise CheckpointError(
            f"{index} names a shard outside its directory" if wrong is None else f"{index} names no file for {wrong}",
            expected="plain file names",
            remedy="download the index again; it belongs to the same revision as the shards",
        )
    if single.exists() and SINGLE not in weight_map.values():
        raise CheckpointError(
            f"{directory} holds two models: {SINGLE}, and the shards of {INDEX}",
            expected="one of them",
            actual="transformers reads the single file, other programs read the shards",
            remedy="move the one that is not the model out of the directory",
        )
    return weight_map


def _ordered(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return dict(sorted(tensors.items(), key=lambda pair: pair[1].start))


def _require_owned(directory: Path, owners: Mapping[str, str], found: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    """Raise `CheckpointError` for a tensor that is not where the index puts it, or that has two places and no owner."""
    for name, shard in owners.items():
        places = found.get(name, {})
        if shard in places:
            continue
        if places:
            raise CheckpointError(
                f"tensor {name} is not in shard {shard} where the index puts it",
                expected=f"the same file in {INDEX} and in the shards",
                actual=f"it is in {', '.join(sorted(places))}",
                remedy=f"{INDEX} does not belong to these shards: take the one of their revision, or correct the entry",
            )
        raise CheckpointError(
            f"tensor {name} is in none of the shards in {directory}",
            expected=f"it in {shard}, where the index puts it",
            remedy=f"{shard} and {INDEX} are of different revisions: download both from one revision",
        )
    for name, places in found.items():
        if name not in owners and len(places) > 1:
            raise CheckpointError(
                f"tensor {name} is in {len(places)} shards, and the index does not say which counts",
                expected="an entry for it in the index",
                actual=", ".join(sorted(places)),
                remedy=f"add {name} to weight_map in {INDEX} with the file that counts",
            )


def _notes(owners: Mapping[str, str], found: Mapping[str, Mapping[str, TensorInfo]]) -> list[str]:
    """What was read although index and shards disagree."""
    stale = [(name, shard) for name, places in found.items() for shard in places if shard != owners.get(name, shard)]
    unlisted = [(name, next(iter(places))) for name, places in found.items() if name not in owners]
    notes = []
    if stale:
        notes.append(
            f"{_some(stale)}: {INDEX} takes each of these from another file, so these copies are ignored; "
            "programs that load whole shards may take them instead"
        )
    if unlisted:
        notes.append(f"{_some(unlisted)}: not listed in {INDEX}, and read like the other tensors of the shard")
    return notes


def _some(places: list[tuple[str, str]]) -> str:
    """The first of many tensors with their files."""
    first = ", ".join(f"{name} in {shard}" for name, shard in sorted(places)[:3])
    return f"{len(places)} tensor{'s' if len(places) > 1 else ''} ({first}{', ...' if len(places) > 3 else ''})"
