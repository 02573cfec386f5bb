"""Size of a checkpoint's weight files as `trimoe prune` writes them. Reads headers only."""

from trimoe.choose.dropmap import DropMap
from trimoe.cut.plan import Shard, plan_cut, plan_shards, shard_header
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import header_bytes


def checkpoint_bytes(checkpoint: Checkpoint, keep: int) -> int:
    """Size of all safetensors files with `keep` experts in each layer; which ones stay does not matter.

    An unpruned model has the size of its files, if they exist; a pruned one is laid out as `trimoe prune` does by
    default.
    """
    files = {info.file for info in checkpoint.index.values()}
    if keep == checkpoint.num_experts and all(file.exists() for file in files):
        return sum(file.stat().st_size for file in files)
    dropped = tuple(range(keep, checkpoint.num_experts))
    drop_map = DropMap(dict.fromkeys(range(checkpoint.num_layers), dropped), checkpoint.num_experts)
    shards = plan_shards(plan_cut(checkpoint, drop_map).pieces)
    return sum(len(_header(shard)) + sum(piece.nbytes for piece in shard.pieces) for shard in shards)


def _header(shard: Shard) -> bytes:
    """The header that prune writes; for a checkpoint planned from its configuration, with the usual metadata."""
    if shard.pieces[0].source.file.exists():
        return shard_header(shard)
    return header_bytes({piece.name: (piece.dtype, piece.shape) for piece in shard.pieces}, {"format": "pt"})
