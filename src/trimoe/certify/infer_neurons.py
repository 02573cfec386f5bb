"""Recognises which neurons of each expert a narrower model kept, by hashes of the neurons' bytes.

A neuron's bytes are its entries in every tensor that has an axis over neurons: rows of gate and up, a column of down.
Invariants: one expert's matrices are in memory at a time; equal neurons cannot be told apart, and the lowest unused id
is taken.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from trimoe.certify.expected import Index
from trimoe.choose.narrowing import Narrowing
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.experts import ExpertTensor
from trimoe.model.neurons import NeuronAxis, expert_width, neuron_axis, neuron_unit
from trimoe.model.safetensors import TensorInfo, read_bytes

Kept = dict[int, list[int | None]]
"""Layer -> the original expert at each position of the narrower model."""


@dataclass
class FoundNeurons:
    """The neurons that were found, and why they are no narrowing; `narrow` is None if there are problems."""

    narrow: Narrowing | None
    problems: list[str]


def find_neurons(base: Checkpoint, pruned: Index, kept: Kept, width: int) -> FoundNeurons:
    """The neurons of every kept expert of `pruned`, whose experts are `width` wide."""
    neurons: dict[int, dict[int, tuple[int, ...]]] = {}
    problems = []
    for layer, experts in kept.items():
        tensors = list(_of_layer(base, layer))
        neurons[layer] = {}
        for position, expert in enumerate(experts):
            if expert is None:
                continue
            ids = _expert_neurons(base, pruned, tensors, expert, position)
            unknown = [place for place, number in enumerate(ids) if number is None]
            known = [number for number in ids if number is not None]
            if unknown:
                problems.append(f"layer {layer}, expert {expert}: {len(unknown)} neurons are none of the original's")
            elif known != sorted(known):
                problems.append(f"layer {layer}, expert {expert}: the kept neurons are in another order")
            elif len(known) != width:
                problems.append(f"layer {layer}, expert {expert}: {len(known)} neurons instead of {width}")
            neurons[layer][expert] = tuple(known)
    return FoundNeurons(None if problems else Narrowing(neurons, expert_width(base)), problems)


def _of_layer(base: Checkpoint, layer: int) -> Iterator[tuple[ExpertTensor, NeuronAxis]]:
    """The tensors of a layer with an axis over neurons."""
    for name, tensor in base.expert_tensors.items():
        if tensor.layer == layer and base.layer_of(name) == layer and (along := neuron_axis(base, tensor)):
            yield tensor, along


def _expert_neurons(
    base: Checkpoint, pruned: Index, tensors: list[tuple[ExpertTensor, NeuronAxis]], expert: int, position: int
) -> list[int | None]:
    """The original's neuron at each place of one expert; None where it is none of them."""
    unit = neuron_unit(base)
    old, new = list[list[bytes]](), list[list[bytes]]()
    for tensor, along in tensors:
        if tensor.expert not in (None, expert):
            continue
        name = tensor.template if tensor.expert is None else tensor.renamed(position)
        if (have := pruned.get(name)) is None or len(have.shape) != len(tensor.info.shape):
            continue
        repeat = unit // along.unit
        old.append(_digests(tensor.info, along, expert if tensor.expert is None else None, repeat))
        new.append(_digests(have, along, position if tensor.expert is None else None, repeat))
    places: dict[tuple[bytes, ...], list[int]] = {}
    for number, signature in enumerate(zip(*old, strict=True)):
        places.setdefault(signature, []).append(number)
    found: list[int | None] = []
    for signature in zip(*new, strict=False):
        free = places.get(signature, [])
        group = free.pop(0) if free else None
        found += [None if group is None else group * unit + i for i in range(unit)]
    return found


def _digests(info: TensorInfo, along: NeuronAxis, slot: int | None, repeat: int) -> list[bytes]:
    """sha256 of each group of neurons in a tensor of one expert, or in expert `slot` of a stack; a group is `repeat`
    entries of each part."""
    inner = info.shape if slot is None else info.shape[1:]
    axis = along.axis if slot is None else along.axis - 1
    size = info.nbytes if slot is None else info.nbytes // info.shape[0]
    outer, length = prod(inner[:axis]), inner[axis]
    data = read_bytes(info, 0 if slot is None else slot * size, size)
    cells = np.frombuffer(data, np.uint8).reshape(outer, length, -1)
    gate = length // along.parts
    index = np.arange(length).reshape((gate, along.parts) if along.interleaved else (along.parts, gate))
    by_neuron = index if along.interleaved else index.T  # [entry, part]
    return [
        hashlib.sha256(cells[:, by_neuron[at : at + repeat].ravel()].tobytes()).digest()
        for at in range(0, gate - gate % repeat, repeat)
    ]
