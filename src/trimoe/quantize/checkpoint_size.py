"""Bytes of a checkpoint's weight files as `trimoe prune` writes them, before it does. Reads headers only."""

from math import prod
from pathlib import Path

from trimoe.choose.dropmap import DropMap
from trimoe.cut.plan import plan_cut, plan_shards
from trimoe.cut.prune import shard_header
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import read_index
from trimoe.quantize.layout import Blueprint


def checkpoint_bytes(folder: Path, keep: int) -> int:
    """Exact size of all safetensors files with `keep` experts in each layer; which ones stay does not matter.

    The whole model is as it lies there; a pruned one is laid out as `trimoe prune` does by default.
    """
    checkpoint = open_checkpoint(folder)
    if keep == checkpoint.num_experts:
        return sum(file.stat().st_size for file in {info.file for info in read_index(folder).values()})
    dropped = tuple(range(keep, checkpoint.num_experts))
    drop_map = DropMap(dict.fromkeys(range(checkpoint.num_layers), dropped), checkpoint.num_experts)
    shards = plan_shards(plan_cut(checkpoint, drop_map))
    return sum(len(shard_header(shard)) + sum(piece.nbytes for piece in shard.pieces) for shard in shards)


def estimated_bytes(blueprint: Blueprint) -> int:
    """From a configuration alone: two bytes per weight of the language model, and 120 per tensor for its entry."""
    return sum(2 * prod(tensor.shape) + 120 for tensor in blueprint.tensors)
