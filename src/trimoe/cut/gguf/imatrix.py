"""Cuts an importance matrix by the same map as its model, so that the pruned model can be quantized with it.

The statistics of an expert are those of its own inputs, so dropping others does not change them. Invariants: entries of
tensors without an expert axis, and the router's, are copied unchanged; an entry of a tensor that the model does not
have is cut if its name and its size say that it is of a cut layer's experts, and copied otherwise; one entry is in
memory at a time.
"""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from trimoe.cut.pieces import Keeps
from trimoe.errors import CheckpointError
from trimoe.io.atomic import publish_file
from trimoe.model.gguf.imatrix import (
    Entry,
    Imatrix,
    note_on,
    unknown_entries,
    write_dat_imatrix,
    write_gguf_imatrix,
)
from trimoe.model.gguf.model import GgufModel
from trimoe.model.safetensors import TensorInfo, read_array

_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+?)( \(reshaped\))*")
Ids = tuple[int, ...]


def cut_imatrix(model: GgufModel, imatrix: Imatrix, keeps: Keeps, out: Path | None) -> list[str]:
    """Write the imatrix of the pruned model to `out` in its original format; if `out` is None, only check it.

    `keeps` are the kept experts of each layer. Returns notes on entries that the model has no tensors for. Raises
    `CheckpointError` if an entry does not fit the model.
    """
    unknown = unknown_entries(imatrix, {name: info.shape for name, info in model.index.items()})
    kept = {name: _kept(model, entry, keeps) for name, entry in imatrix.entries.items()}
    notes = [f"{note_on(unknown)}; {_how(unknown, kept)}"] if unknown else []
    other = [i for i in (imatrix.gguf.index.values() if imatrix.gguf else ()) if i.dtype != "F32"]
    if other:
        raise CheckpointError(
            f"tensor {other[0].name} in {imatrix.path} is not float32",
            expected="float32, as llama-imatrix writes",
            actual=other[0].dtype,
            remedy="use the imatrix as llama-imatrix wrote it",
        )
    if out is None:
        return notes
    experts = model.num_experts
    if imatrix.gguf is None:
        entries = ((e.name, e.calls, _rows(e.read_sums(), kept[e.name], experts)) for e in imatrix.entries.values())
        with publish_file(out) as place:
            write_dat_imatrix(place, entries, len(imatrix.entries), imatrix.trailer)
        return notes
    file = imatrix.gguf.files[0]
    index = imatrix.gguf.index
    by_tensor = {name: _ids_of(info, kept, experts) for name, info in index.items()}
    shapes = {name: _cut_shape(info.shape, by_tensor[name], experts) for name, info in index.items()}

    def arrays() -> Iterator[np.ndarray]:
        for name, info in index.items():
            yield _rows(np.asarray(read_array(info)), by_tensor[name], experts).reshape(shapes[name])

    with publish_file(out) as place:
        write_gguf_imatrix(place, file.version, file.fields.values(), file.alignment, shapes, arrays())
    return notes


def _kept(model: GgufModel, entry: Entry, keeps: Keeps) -> Ids | None:
    """The expert ids of an entry that are kept, or None for all."""
    tensor, info = model.expert_tensors.get(entry.name), model.index.get(entry.name)
    if info is not None:
        return keeps[tensor.layer] if tensor is not None and len(info.shape) == 3 and tensor.axis == 0 else None
    match = _LAYER.fullmatch(entry.name)
    if match is None or int(match[1]) not in keeps or not model.names.concerns_experts(match[2]):
        return None
    # Without counts per matrix (.dat) nothing says how many experts a vector is of.
    rows = 0 if entry.counts is None else prod(entry.counts.shape)
    return keeps[int(match[1])] if rows == model.num_experts else None


def _ids_of(info: TensorInfo, kept: dict[str, Ids | None], experts: int) -> Ids | None:
    """The kept ids for one tensor of the file. Its name is an entry's and a suffix: the sums, the counts, and others
    that later versions of llama.cpp may add."""
    ids = kept.get(info.name.rpartition(".")[0])
    return ids if ids is not None and prod(info.shape) % experts == 0 else None


def _cut_shape(shape: tuple[int, ...], ids: Ids | None, experts: int) -> tuple[int, ...]:
    """The shape without the dropped experts; a flat vector of all experts (converted from .dat) becomes shorter."""
    if ids is None:
        return shape
    if shape[0] == experts:
        return (len(ids), *shape[1:])
    return (*shape[:-1], shape[-1] * len(ids) // experts)


def _how(unknown: tuple[str, ...], kept: dict[str, Ids | None]) -> str:
    cut = sum(kept[name] is not None for name in unknown)
    return f"{cut} of them are of cut layers' experts and were cut, the others are copied unchanged"


def _rows(values: np.ndarray, ids: Ids | None, experts: int) -> np.ndarray:
    """The rows `ids` of [experts, ...] values, which may be flat."""
    return values if ids is None else values.reshape(experts, -1)[list(ids)]
