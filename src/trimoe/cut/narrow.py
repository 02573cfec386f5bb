"""Plans narrower experts: which entries of each planned tensor hold the kept neurons.

Invariants: neurons that share a scale or a byte stay together; the shared experts keep their width.
"""

from dataclasses import replace
from math import prod

from trimoe.choose.narrowing import Narrowing
from trimoe.cut.pieces import Block, Keeps, Piece
from trimoe.errors import CheckpointError, MapError
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.neurons import NeuronAxis, expert_width, neuron_axis, neuron_unit
from trimoe.model.safetensors import ITEM_BITS


class Narrower:
    """Takes the dropped neurons out of planned tensors. Raises `MapError` or `CheckpointError` if it cannot."""

    def __init__(self, checkpoint: Checkpoint, narrow: Narrowing, keeps: Keeps) -> None:
        self._checkpoint, self._narrow, self._keeps = checkpoint, narrow, keeps
        before = expert_width(checkpoint)
        narrow.check(keeps, before)
        self.width = narrow.kept
        self._require_groups(neuron_unit(checkpoint))
        shared_experts(checkpoint, self.width)

    def narrowed(self, piece: Piece, tensor: ExpertTensor) -> Piece:
        """`piece` with only the kept neurons; unchanged if it has no axis over them."""
        along = neuron_axis(self._checkpoint, tensor)
        if along is None:
            return piece
        info, layer = piece.source, tensor.layer
        experts = (tensor.expert,) if tensor.expert is not None else self._keeps[layer]
        inner = info.shape if tensor.expert is not None else info.shape[1:]
        axis = along.axis if tensor.expert is not None else along.axis - 1
        if tensor.expert is None and tensor.axis != 0:
            raise CheckpointError(
                f"tensor {info.name} cannot be cut by neurons", expected="experts along its first axis"
            )
        bits = prod(inner[axis + 1 :]) * ITEM_BITS[info.dtype]
        if bits % 8:
            raise CheckpointError(f"tensor {info.name} cannot be cut by neurons", expected="whole bytes per entry")
        size, outer = prod(inner) * ITEM_BITS[info.dtype] // 8, prod(inner[:axis])
        blocks = []
        for expert in experts:
            start = info.start + (size * expert if tensor.expert is None else 0)
            kept = _entries(along, self._narrow.of(layer, expert), inner[axis])
            blocks.append(Block(start, outer, inner[axis], bits // 8, kept))
        shape = list(piece.shape)
        shape[along.axis] = len(blocks[0].keep)
        return replace(piece, shape=tuple(shape), keep=None, blocks=tuple(blocks))

    def _require_groups(self, unit: int) -> None:
        """Every group of neurons that share a scale or a byte is kept or removed as a whole."""
        for layer, experts in self._narrow.neurons.items():
            for expert, ids in experts.items():
                groups = ids[::unit]
                whole = [first + i for first in groups if first % unit == 0 for i in range(unit)]
                if tuple(whole) != ids:
                    raise MapError(
                        f"layer {layer}, expert {expert} of the map splits neurons that are stored together",
                        expected=f"whole groups of {unit} neurons",
                        actual=str(ids[: unit + 1])[:80],
                        remedy="make the map from this checkpoint with trimoe map --width",
                    )


def shared_experts(checkpoint: Checkpoint, width: int) -> tuple[str, int] | None:
    """(key, new value) of the config.json key that keeps the shared experts as wide as they are; None without one.

    Raises `MapError` if no value does.
    """
    key = checkpoint.hf.narrow.shared_count if checkpoint.hf.narrow else None
    count = checkpoint.setting(key)
    if key is None or not count:
        return None
    whole = count * expert_width(checkpoint)
    if whole % width:
        raise MapError(
            "experts of this width leave no width for the shared experts",
            expected=f"a width that divides {whole}, because config.json states theirs as {key} times it",
            actual=str(width),
            remedy="choose another --width",
        )
    return key, whole // width


def _entries(along: NeuronAxis, neurons: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The entries of an axis that hold `neurons`, in the axis's order."""
    ids = [n // along.unit for n in neurons[:: along.unit]]
    if along.interleaved:
        return tuple(along.parts * i + part for i in ids for part in range(along.parts))
    return tuple(part * (length // along.parts) + i for part in range(along.parts) for i in ids)
