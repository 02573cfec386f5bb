"""What every tensor of a pruned checkpoint must be, by the original and the map.

Derived from the family's data and the map alone, deliberately without the code that pruned: a bug there must not
confirm itself.
"""

from dataclasses import dataclass, replace
from math import prod

from trimoe.choose.dropmap import DropMap, require_groups
from trimoe.choose.narrowing import Narrowing
from trimoe.errors import CheckpointError, MapError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.gguf.model import GgufModel
from trimoe.model.neurons import expert_width, neuron_axis
from trimoe.model.safetensors import TensorInfo

Index = dict[str, TensorInfo]
"""Tensors of a model by name."""


def kept_count(drop_map: DropMap) -> int:
    """Experts per layer after the cut (`drop_map.num_experts` must be known)."""
    return len(drop_map.keep(min(drop_map.drop)))


@dataclass(frozen=True)
class Expected:
    """One tensor that the pruned model must have. `kept` is None for an untouched tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorInfo
    layer: int | None = None
    axis: int = 0
    kept: tuple[int, ...] | None = None
    expert: int | None = None
    position: int | None = None
    block: int | None = None
    """The decoder layer of the tensor, cut or not; None outside the decoder layers."""
    entries: tuple[tuple[int, ...], ...] | None = None
    """Where experts become narrower: the kept entries of `along` for each kept expert, in the pruned model's order."""
    along: int = 0
    """Axis of the source's tensor over neurons."""

    @property
    def cut(self) -> bool:
        """Whether the tensor carries the expert axis."""
        return self.layer is not None

    @property
    def where(self) -> int | None:
        """The layer to name in a finding. For a cut drafting block, the one whose drops apply."""
        return self.layer if self.block is None else self.block


def fit_map(base: Checkpoint | GgufModel, drop_map: DropMap) -> DropMap:
    """`drop_map` over exactly the layers that have experts. Raises `MapError` if it cannot cut `base`.

    Layers without experts may be absent from a map or drop nothing.
    """
    layers = base.moe_layers
    if wrong := [i for i, ids in drop_map.drop.items() if ids and i < base.num_layers and i not in layers]:
        raise MapError(
            f"the map drops experts in layer {wrong[0]}, which has none",
            expected=f"layers {', '.join(map(str, layers))}",
            actual=f"also {wrong}",
            remedy="use the map of this model",
        )
    fitted = {layer: drop_map.drop[layer] for layer in sorted(drop_map.drop) if layer in layers}
    dense = [layer for layer in range(base.num_layers) if layer not in layers]
    common = next(iter(fitted.values()), ())
    others = {i: ids for i, ids in drop_map.drop.items() if i not in layers and i not in dense}
    complete = {**fitted, **others, **dict.fromkeys(dense, common)}
    metadata = drop_map.metadata
    fingerprint = base.fingerprint if metadata.get("model") else None
    DropMap(complete, drop_map.num_experts, metadata).validate(
        base.num_layers, base.num_experts, base.top_k, fingerprint
    )
    require_groups(DropMap(fitted), base.groups, fitted, base.num_experts, base.top_k)
    if drop_map.narrow is not None:
        if not isinstance(base, Checkpoint):
            raise MapError("a GGUF file's experts cannot be made narrower", remedy="use the map that cut this file")
        gone = {layer: set(ids) for layer, ids in fitted.items()}
        keeps = {i: [e for e in range(base.num_experts) if e not in ids] for i, ids in gone.items()}
        drop_map.narrow.check(keeps, expert_width(base))
    return DropMap(fitted, base.num_experts, metadata, drop_map.narrow)


def expected_tensors(base: Checkpoint, drop_map: DropMap) -> dict[str, Expected]:
    """Every tensor of the pruned model by name: untouched, stacked and cut, or one expert's under its new number."""
    expected: dict[str, Expected] = {}
    for info in base.index.values():
        tensor = base.expert_tensors.get(info.name)
        if tensor is None:
            expected[info.name] = Expected(info.name, info.dtype, info.shape, info, block=base.layer_of(info.name))
            continue
        kept = tuple(drop_map.keep(tensor.layer, base.num_experts))
        if tensor.expert is None:
            shape = (*info.shape[: tensor.axis], len(kept), *info.shape[tensor.axis + 1 :])
            expected[info.name] = Expected(info.name, info.dtype, shape, info, tensor.layer, tensor.axis, kept)
        elif tensor.expert in kept:
            position = kept.index(tensor.expert)
            name = tensor.renamed(position)
            expected[name] = Expected(
                name, info.dtype, info.shape, info, tensor.layer, expert=tensor.expert, position=position
            )
    if drop_map.narrow is not None:
        for name, want in expected.items():
            if want.cut:
                expected[name] = _narrower(base, want, drop_map.narrow)
    return expected


def _narrower(base: Checkpoint, want: Expected, narrow: Narrowing) -> Expected:
    """The tensor without the neurons that the map removes; unchanged if it has no axis over neurons."""
    along = neuron_axis(base, base.expert_tensors[want.source.name])
    if along is None or want.layer is None:
        return want
    experts = (want.expert,) if want.expert is not None else want.kept or ()
    entries = []
    for expert in experts:
        kept = set(narrow.of(want.layer, expert))
        # Entry by entry, the neurons that it holds, by the layout that the family's file describes.
        length, gate = want.source.shape[along.axis], want.source.shape[along.axis] // along.parts
        holds = [(i // along.parts if along.interleaved else i % gate) * along.unit for i in range(length)]
        entries.append(tuple(i for i, first in enumerate(holds) if first in kept))
    shape = list(want.shape)
    shape[along.axis] = len(entries[0])
    return replace(want, shape=tuple(shape), entries=tuple(entries), along=along.axis)


def row_layout(info: TensorInfo, axis: int) -> tuple[int, int]:
    """(outer, row bytes): an expert's slice is `outer` pieces of `row` bytes. Raises if a row is not whole bytes."""
    outer, rows = prod(info.shape[:axis]), prod(info.shape[: axis + 1])
    if info.nbytes % max(rows, 1):
        raise CheckpointError(
            f"tensor {info.name} packs several experts into one byte",
            actual=f"{info.dtype} {list(info.shape)}",
            remedy="this layout cannot be cut or compared by rows",
        )
    return outer, info.nbytes // max(rows, 1)
