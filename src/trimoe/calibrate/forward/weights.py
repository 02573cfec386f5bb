"""Tensors of a checkpoint as torch tensors, memory-mapped from their byte range on first use.

Mapped pages belong to the kernel's file cache: weights used in their stored type are never copied, and the kernel may
drop and read them again when memory is short. Invariant: a returned tensor holds only finite values.
Not guaranteed: a clean exit if the file is truncated while mapped (the process gets SIGBUS; the run can be resumed).
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.dequantize.parts import FloatTensor
from trimoe.model.safetensors import TensorInfo, read_bytes

_TORCH_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_BLOCK = 1 << 22


class LazyTensor:
    """A placeholder for a tensor in a state dict; `lazy[...]` maps its byte range and checks it.

    `edit` (bytes to bytes of the same length) changes the tensor as it is loaded, to try a change before writing it.
    """

    def __init__(self, tensor: FloatTensor, edit: Callable[[bytes], bytes] | None = None) -> None:
        self.tensor, self.edit = tensor, edit

    def __getitem__(self, _: Any) -> Any:
        stored = self.tensor.stored
        tensor = values_of(self.tensor) if self.edit is None or stored is None else _edited(stored, self.edit)
        require_finite(tensor, self.tensor.name)
        return tensor


class StoredTensor:
    """A placeholder like `LazyTensor` whose values are not checked: of a stack, only some experts may be used."""

    def __init__(self, tensor: FloatTensor) -> None:
        self.tensor = tensor

    def __getitem__(self, _: Any) -> Any:
        return values_of(self.tensor)


def values_of(tensor: FloatTensor) -> Any:
    """The values, mapped from the file where they are stored as floats, else decoded to float32."""
    import torch

    return torch.from_numpy(tensor.array()) if tensor.stored is None else mapped(tensor.stored)


def _edited(info: TensorInfo, edit: Callable[[bytes], bytes]) -> Any:
    import torch

    require_readable(info)
    changed = torch.frombuffer(bytearray(edit(read_bytes(info))), dtype=torch.uint8)
    return changed.view(getattr(torch, _TORCH_DTYPES[info.dtype])).reshape(info.shape)


def require_readable(info: TensorInfo) -> None:
    """Raise `CheckpointError` for a type that is not a plain number, as in a quantized checkpoint."""
    if info.dtype not in _TORCH_DTYPES:
        raise CheckpointError(
            f"tensor {info.name} has type {info.dtype}",
            expected="float32, float16 or bfloat16",
            remedy="calibrate the unquantized checkpoint",
        )


def mapped(info: TensorInfo) -> Any:
    """The tensor on a private mapping of its file (a write to it would not reach the file)."""
    import torch

    require_readable(info)
    dtype = getattr(torch, _TORCH_DTYPES[info.dtype])
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    first = info.start - info.start % mmap.ALLOCATIONGRANULARITY
    with info.file.open("rb") as handle:
        if os.fstat(handle.fileno()).st_size < info.end:
            raise CheckpointError(
                f"tensor {info.name} in {info.file} is truncated",
                expected=f"{info.end} bytes",
                remedy="download or copy the file again",
            )
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), info.start, info.nbytes, os.POSIX_FADV_WILLNEED)
        pages = mmap.mmap(handle.fileno(), info.end - first, access=mmap.ACCESS_COPY, offset=first)
    raw = torch.frombuffer(pages, dtype=torch.uint8)[info.start - first :]
    if info.start % dtype.itemsize:  # the format does not guarantee alignment
        raw = raw.clone()
    return raw.view(dtype).reshape(info.shape)


def require_finite(tensor: Any, name: str) -> None:
    """Raise `CheckpointError` if a value is NaN or infinite. Reads the whole tensor, so it also loads the pages."""
    import torch

    if not tensor.is_floating_point():
        return
    # A sum in the tensor's own type makes no copy. Values are checked one by one only if it is not finite.
    if bool(torch.isfinite(tensor.sum())):
        return
    if not all(bool(torch.isfinite(part).all()) for part in torch.split(tensor.reshape(-1), _BLOCK)):
        raise CheckpointError(
            f"tensor {name} holds NaN or infinite values",
            expected="finite weights",
            remedy="download the file again; if it is intact, the model diverged in training and cannot be measured",
        )


def return_freed_memory() -> None:
    """Return freed memory from the allocator to the system (glibc only; does nothing elsewhere).

    Without it, reader threads retain a part of every layer, and memory grows with the depth of the model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
