"""Plans a cut: from headers and map to the byte ranges of each output tensor and its file.

Pure: reads only headers, writes nothing. Kept experts stay in ascending order and are renumbered from 0; kept neurons
stay in ascending order.
Invariants: a plan depends on the checkpoint and the map alone; within a file, tensors are ordered by item size, largest
first, so that each is aligned whatever the lengths before it (loaders map files into memory).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from trimoe.choose.dropmap import DropMap, require_groups
from trimoe.cut.narrow import Narrower
from trimoe.cut.pieces import Keeps, Piece
from trimoe.errors import CheckpointError, MapError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.safetensors import ITEM_BITS, TensorInfo, header_bytes, read_header

DEFAULT_SHARD = 5_000_000_000  # bytes of tensors per file, as Hugging Face does


@dataclass(frozen=True)
class Shard:
    """One output file: its name, and its tensors in byte order."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class CutPlan:
    """What a map makes of a checkpoint: the kept expert ids of each layer, and every output tensor in source order."""

    keeps: Keeps
    pieces: tuple[Piece, ...]
    width: int | None = None
    """Neurons per expert after the cut, if it makes experts narrower."""

    @property
    def kept(self) -> int:
        """Experts per layer after the cut."""
        return len(next(iter(self.keeps.values())))


def plan_cut(checkpoint: Checkpoint, drop_map: DropMap) -> CutPlan:
    """Check `drop_map` against the checkpoint and plan every output tensor.

    Raises `MapError` if the map does not fit, `CheckpointError` if the model cannot be cut exactly.
    """
    keeps = _validated_keeps(checkpoint, drop_map)
    narrower = None if drop_map.narrow is None else Narrower(checkpoint, drop_map.narrow, keeps)
    pieces = []
    for info in checkpoint.index.values():
        tensor = checkpoint.expert_tensors.get(info.name)
        if tensor is None:
            pieces.append(Piece(info.name, info.shape, info))
        elif tensor.expert is None:
            pieces.append(_cut_stack(info, tensor, keeps[tensor.layer]))
        elif tensor.expert in keeps[tensor.layer]:
            position = keeps[tensor.layer].index(tensor.expert)
            pieces.append(Piece(tensor.renamed(position), info.shape, info))
        else:
            continue
        if tensor is not None and narrower is not None:
            pieces[-1] = narrower.narrowed(pieces[-1], tensor)
    return CutPlan(keeps, tuple(pieces), None if narrower is None else narrower.width)


def _validated_keeps(checkpoint: Checkpoint, drop_map: DropMap) -> Keeps:
    """The kept ids of each layer with experts, after all checks of the map."""
    if reason := checkpoint.cannot_cut:
        raise CheckpointError(
            "this model cannot be pruned exactly",
            expected="a router whose choice among the kept experts is the original's",
            actual=reason,
            remedy="prune another model",
        )
    dense = sorted(set(range(checkpoint.num_layers)) - set(checkpoint.moe_layers))
    if wrong := [layer for layer in dense if drop_map.drop.get(layer)]:
        raise MapError(
            f"the map drops experts in layer {wrong[0]}, which has none",
            expected=f"layers {', '.join(map(str, checkpoint.moe_layers))}",
            actual=f"also {wrong}",
            remedy="use the map of this model",
        )
    # A dense layer may be absent from the map: give it the common count, so that the map's checks cover every layer.
    common = next((ids for layer, ids in sorted(drop_map.drop.items()) if layer not in dense), ())
    complete = DropMap({**drop_map.drop, **dict.fromkeys(dense, common)}, drop_map.num_experts, drop_map.metadata)
    # The fingerprint reads small parts of every tensor; ask for it only when the map names a model.
    fingerprint = checkpoint.fingerprint if drop_map.metadata.get("model") else None
    complete.validate(checkpoint.num_layers, checkpoint.num_experts, checkpoint.top_k, fingerprint)
    require_groups(drop_map, checkpoint.groups, checkpoint.moe_layers, checkpoint.num_experts, checkpoint.top_k)
    return {layer: tuple(drop_map.keep(layer, checkpoint.num_experts)) for layer in checkpoint.moe_layers}


def _cut_stack(info: TensorInfo, tensor: ExpertTensor, keep: tuple[int, ...]) -> Piece:
    inner = prod(info.shape[tensor.axis + 1 :])
    if inner * ITEM_BITS[info.dtype] % 8:
        raise CheckpointError(
            f"tensor {info.name} cannot be cut exactly",
            expected="whole bytes per expert",
            actual=f"{inner} values of {ITEM_BITS[info.dtype]} bits",
            remedy="prune the unquantized checkpoint instead",
        )
    shape = (*info.shape[: tensor.axis], len(keep), *info.shape[tensor.axis + 1 :])
    whole = len(keep) == info.shape[tensor.axis]
    return Piece(info.name, shape, info, tensor.axis, None if whole else keep)


def plan_shards(pieces: Sequence[Piece], max_shard: int | None = DEFAULT_SHARD) -> list[Shard]:
    """The output files: filled in source order up to `max_shard` bytes of tensors, or as in the source (None)."""
    groups: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if max_shard is None:
            full = bool(groups) and piece.source.file != groups[-1][-1].source.file
        else:
            full = size + piece.nbytes > max_shard
        if not groups or full:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.nbytes
    names = shard_names(len(groups))
    return [Shard(name, tuple(sorted(group, key=_alignment))) for name, group in zip(names, groups, strict=True)]


def _alignment(piece: Piece) -> int:
    return -ITEM_BITS[piece.dtype]


def shard_names(count: int) -> list[str]:
    """The names that Hugging Face gives to `count` files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def shard_header(shard: Shard) -> bytes:
    """The header of an output file. Its metadata are those of the first tensor's source file."""
    metadata = {"format": "pt", **read_header(shard.pieces[0].source.file)[1]}
    return header_bytes({piece.name: (piece.dtype, piece.shape) for piece in shard.pieces}, metadata)
