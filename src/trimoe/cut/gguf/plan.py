"""Plans a GGUF cut: from header and map to metadata, tensors and byte ranges of each output file. Pure.

In every quantization type an expert's weights are contiguous on the slowest axis, so a cut copies whole experts and
converts nothing. Invariants: a plan depends on the model, the map and the layout alone; metadata other than the expert
count and the split keys keep their bytes and order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trimoe.choose.dropmap import DropMap, require_groups
from trimoe.cut.pieces import Keeps
from trimoe.errors import CheckpointError, MapError
from trimoe.model.gguf.file import split_name
from trimoe.model.gguf.format import INTEGERS, Field, nbytes_of, padded, scalar_field
from trimoe.model.gguf.model import GgufModel
from trimoe.model.safetensors import TensorInfo

_SPLIT = "split."
_U16, _I32 = 2, 5  # types of the split keys, as llama.cpp writes them
_MAX_PARTS = 99_999  # five digits in the names

Layout = Literal["single", "source"] | int
"""One file; files as in the source; or files with at most this many bytes of tensors."""


@dataclass(frozen=True)
class GgufPiece:
    """An output tensor: all of a source tensor, or the experts `keep` of it."""

    shape: tuple[int, ...]
    source: TensorInfo
    keep: tuple[int, ...] | None = None
    experts: int = 1
    """Entries of the source's expert axis."""

    @property
    def name(self) -> str:
        """The source's name; a cut renames nothing."""
        return self.source.name

    @property
    def nbytes(self) -> int:
        """Size in bytes, without padding."""
        return self.source.nbytes if self.keep is None else self.row * len(self.keep)

    @property
    def row(self) -> int:
        """Bytes of one expert."""
        return self.source.nbytes // self.experts

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Absolute [start, end) byte ranges of the source file in output order; adjacent ones are joined."""
        if self.keep is None:
            if self.source.nbytes:
                yield self.source.start, self.source.end
            return
        start = end = self.source.start
        for expert in self.keep:
            at = self.source.start + expert * self.row
            if at != end:
                if end > start:
                    yield start, end
                start = at
            end = at + self.row
        if end > start:
            yield start, end


@dataclass(frozen=True)
class GgufPart:
    """One output file. `name` is empty for a single file, whose name the caller chose."""

    name: str
    version: int
    alignment: int
    fields: tuple[Field, ...]
    pieces: tuple[GgufPiece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of tensors and their padding, without the header."""
        return sum(padded(piece.nbytes, self.alignment) for piece in self.pieces)


def complete_map(model: GgufModel, drop_map: DropMap) -> DropMap:
    """The map over every layer of the file, after all checks of the map; dense layers drop nothing.

    A multi-token-prediction layer that the map does not name drops what the last ordinary layer with experts drops, as
    in a checkpoint. Raises `MapError`. The model that the map was made for is not checked: a GGUF file does not state
    which checkpoint it was converted from.
    """
    if drop_map.narrow is not None:
        raise MapError(
            "a GGUF file's experts cannot be made narrower yet",
            expected="a map of whole experts",
            actual=repr(drop_map),
            remedy="prune the checkpoint with this map and convert the result, or make the map without --width",
        )
    layers = model.moe_layers
    dense = set(range(model.num_layers)) - set(layers)
    if wrong := [layer for layer, ids in sorted(drop_map.drop.items()) if ids and layer in dense]:
        raise MapError(
            f"the map drops experts in layer {wrong[0]}, which has none",
            expected=f"layers {', '.join(map(str, layers))}",
            actual=f"also {wrong}",
            remedy="use the map of this model",
        )
    last = max((layer for layer in layers if layer not in model.predicting_layers), default=layers[-1])
    drop = dict(drop_map.drop)
    if last in drop:
        drop |= {layer: drop[last] for layer in model.predicting_layers if layer in layers and layer not in drop}
    # A dense layer may be absent: give it the common count, so that the map's own checks cover every layer.
    common = next((ids for layer, ids in sorted(drop.items()) if layer not in dense), ())
    DropMap({**drop, **dict.fromkeys(dense, common)}, drop_map.num_experts).validate(
        model.num_layers, model.num_experts, model.top_k
    )
    require_groups(DropMap(drop), model.groups, layers, model.num_experts, model.top_k)
    return DropMap(dict(sorted({**drop, **dict.fromkeys(dense, ())}.items())), model.num_experts, drop_map.metadata)


@dataclass(frozen=True)
class GgufPlan:
    """What a map makes of a model: the map over all its layers, the kept expert ids of each layer, the output files."""

    drop_map: DropMap
    keeps: Keeps
    parts: tuple[GgufPart, ...]

    @property
    def kept(self) -> int:
        """Experts per layer after the cut."""
        return len(next(iter(self.keeps.values())))


def plan_gguf(model: GgufModel, drop_map: DropMap, stem: str, layout: Layout) -> GgufPlan:
    """Check `drop_map` against the model and plan every output file. `stem` is the beginning of the parts' names.

    Raises `MapError` if the map does not fit, `CheckpointError` if a tensor cannot be cut exactly.
    """
    complete = complete_map(model, drop_map)
    keeps = {layer: tuple(complete.keep(layer)) for layer in model.moe_layers}
    return GgufPlan(complete, keeps, tuple(_parts(model, keeps, stem, layout)))


def _parts(model: GgufModel, keeps: Keeps, stem: str, layout: Layout) -> list[GgufPart]:
    kept = len(next(iter(keeps.values())))
    pieces = [[_piece(model, info, keeps) for info in file.tensors.values()] for file in model.gguf.files]
    fields = [[_counted(model, f, kept) for f in file.fields.values()] for file in model.gguf.files]
    first = model.gguf.files[0]
    if layout == "source" and len(pieces) > 1:
        named = [split_name(stem, i, len(pieces)) for i in range(len(pieces))]
        return [
            GgufPart(name, file.version, file.alignment, tuple(own), tuple(group))
            for name, file, own, group in zip(named, model.gguf.files, fields, pieces, strict=True)
        ]
    alone = [f for f in fields[0] if not f.key.startswith(_SPLIT)]
    flat = [piece for group in pieces for piece in group]
    groups = [flat] if isinstance(layout, str) else _by_size(flat, layout, first.alignment)
    if len(groups) == 1:
        return [GgufPart("", first.version, first.alignment, tuple(alone), tuple(flat))]
    return [
        GgufPart(
            split_name(stem, i, len(groups)),
            first.version,
            first.alignment,
            (*_part_fields(alone, i), *_split_fields(i, len(groups), len(flat))),
            tuple(group),
        )
        for i, group in enumerate(groups)
    ]


def _piece(model: GgufModel, info: TensorInfo, keeps: Keeps) -> GgufPiece:
    tensor = model.expert_tensors.get(info.name)
    experts = model.num_experts
    if tensor is None or len(keeps[tensor.layer]) == experts:
        return GgufPiece(info.shape, info)
    keep, axis = keeps[tensor.layer], tensor.axis
    shape = (*info.shape[:axis], len(keep), *info.shape[axis + 1 :])
    if info.nbytes % experts or nbytes_of(info.dtype, shape) != info.nbytes // experts * len(keep):
        raise CheckpointError(
            f"tensor {info.name} cannot be cut exactly",
            expected="whole blocks per expert",
            actual=f"{info.nbytes} bytes of {info.dtype} for {experts} experts",
        )
    return GgufPiece(shape, info, keep, experts)


def _counted(model: GgufModel, field: Field, kept: int) -> Field:
    if field.key != model.count_key or field.kind not in INTEGERS:
        return field
    return scalar_field(field.key, field.kind, kept)


def _by_size(pieces: list[GgufPiece], limit: int, alignment: int) -> list[list[GgufPiece]]:
    """Groups filled in source order, as llama-gguf-split does."""
    groups: list[list[GgufPiece]] = [[]]
    size = 0
    for piece in pieces:
        size += padded(piece.nbytes, alignment)
        if size > limit and groups[-1]:
            groups.append([])
            size = padded(piece.nbytes, alignment)
        groups[-1].append(piece)
    if len(groups) > _MAX_PARTS:
        raise CheckpointError(
            f"{len(groups)} files are too many", expected=f"at most {_MAX_PARTS}", remedy="give a larger --max-shard"
        )
    return groups


def _part_fields(alone: list[Field], part: int) -> list[Field]:
    """The first file holds all metadata; the others only what their own layout depends on."""
    return alone if part == 0 else [f for f in alone if f.key == "general.alignment"]


def _split_fields(part: int, parts: int, tensors: int) -> list[Field]:
    return [
        scalar_field("split.no", _U16, part),
        scalar_field("split.count", _U16, parts),
        scalar_field("split.tensors.count", _I32, tensors),
    ]
