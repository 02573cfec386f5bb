"""Cuts an importance matrix by the same map as its model, so that the pruned model can be quantized with it.

The statistics of an expert are those of its own inputs, so dropping others does not change them. Invariants: entries of
tensors without an expert axis, and the router's, are copied unchanged; one entry is in memory at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trimoe.cut.plan import Keeps
from trimoe.errors import CheckpointError
from trimoe.io.atomic import publish_file
from trimoe.model.gguf.imatrix import COUNTS, SUMS, Entry, Imatrix, write_dat_imatrix, write_gguf_imatrix
from trimoe.model.gguf.model import GgufModel


def cut_imatrix(model: GgufModel, imatrix: Imatrix, keeps: Keeps, out: Path | None) -> None:
    """Write the imatrix of the pruned model to `out` in its original format; if `out` is None, only check it.

    `keeps` are the kept experts of each layer. Raises `CheckpointError` if an entry does not fit the model.
    """
    kept = {name: _kept(model, entry, keeps) for name, entry in imatrix.entries.items()}
    if out is None:
        return
    if imatrix.gguf is None:
        entries = ((e.name, e.calls, _rows(e.read_sums(), kept[e.name], model)) for e in imatrix.entries.values())
        with publish_file(out) as place:
            write_dat_imatrix(place, entries, len(imatrix.entries), imatrix.trailer)
        return
    file = imatrix.gguf.files[0]
    shapes = {}
    for name, info in imatrix.gguf.index.items():
        ids = kept[name.removesuffix(SUMS).removesuffix(COUNTS)]
        shapes[name] = info.shape if ids is None else (len(ids), *info.shape[1:])

    def arrays() -> Iterator[np.ndarray]:
        for name in shapes:
            entry = imatrix.entries[name.removesuffix(SUMS).removesuffix(COUNTS)]
            whole = entry.read_sums() if name.endswith(SUMS) else entry.read_counts()
            yield _rows(whole, kept[entry.name], model)

    with publish_file(out) as place:
        write_gguf_imatrix(place, file.version, file.fields.values(), file.alignment, shapes, arrays())


def _kept(model: GgufModel, entry: Entry, keeps: Keeps) -> tuple[int, ...] | None:
    """The expert ids of an entry that are kept, or None for all."""
    info = model.index.get(entry.name)
    if info is None:
        raise CheckpointError(
            f"the imatrix has an entry for {entry.name}, which the model does not have",
            expected=f"tensors of {model.path.name}",
            remedy="use the imatrix of this model",
        )
    values = entry.sums.nbytes // 4
    matrices = values // info.shape[-1]
    tensor = model.expert_tensors.get(entry.name)
    experts = tensor is not None and len(info.shape) == 3 and tensor.axis == 0
    if matrices * info.shape[-1] != values or matrices != (model.num_experts if experts else 1):
        raise CheckpointError(
            f"the imatrix entry of {entry.name} does not fit the model",
            expected=f"{model.num_experts if experts else 1} x {info.shape[-1]} values",
            actual=f"{values} values",
            remedy="use the imatrix of this model, made by a llama.cpp that counts per expert",
        )
    return keeps[tensor.layer] if experts and tensor is not None else None


def _rows(values: np.ndarray, ids: tuple[int, ...] | None, model: GgufModel) -> np.ndarray:
    """The rows `ids` of [experts, ...] values, which may be flat."""
    return values if ids is None else values.reshape(model.num_experts, -1)[list(ids)]
