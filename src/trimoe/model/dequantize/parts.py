"""What the decoders share: tensors of floats that are decoded when read, small float types, scales, bit fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimoe.model.nvfp4 import E4M3
from trimoe.model.safetensors import TensorInfo, nbytes_of, read_array, read_bytes

Array = np.ndarray
Parts = Mapping[str, TensorInfo]
Settings = Mapping[str, Any]
Planned = tuple[tuple[int, ...], Callable[[], Array]]
"""The shape of the floats, and what decodes them."""
FLOATS = ("F64", "F32", "F16", "BF16")
E5M2 = (np.arange(256).astype(np.uint16) << 8).view(np.float16).astype(np.float32)
"""E5M2 by its bits: the upper half of a float16."""


class NotFloats(Exception):
    """Internal: why a checkpoint has no float values here."""


@dataclass(frozen=True)
class FloatTensor:
    """A tensor of floats: stored as such, or decoded to float32 when it is read. Memory holds one at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: TensorInfo | None = None
    decode: Callable[[], Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the floats."""
        return nbytes_of(self.dtype, self.shape)

    def array(self) -> Array:
        """float32 values; float64 and integers are kept."""
        if self.decode is not None:
            return np.ascontiguousarray(self.decode(), np.float32).reshape(self.shape)
        assert self.stored is not None
        return read_array(self.stored)

    def data(self) -> bytes | memoryview:
        """The bytes as a safetensors file holds them."""
        if self.stored is not None:
            return read_bytes(self.stored)
        return self.array().reshape(-1).view(np.uint8).data


def codes(info: TensorInfo) -> Array:
    """The bytes of a tensor, uint8, in its shape (of types of one byte)."""
    return np.frombuffer(read_bytes(info), np.uint8).reshape(info.shape)


def words(info: TensorInfo) -> Array:
    """The 32-bit words of a tensor, uint32, in its shape."""
    if info.dtype not in ("I32", "U32"):
        raise NotFloats(f"{info.name} has type {info.dtype}, not 32-bit words")
    return np.frombuffer(read_bytes(info), "<u4").reshape(info.shape)


def scales(info: TensorInfo) -> Array:
    """Scales as float32. One byte without a float type is an exponent (E8M0)."""
    if info.dtype in ("U8", "F8_E8M0"):
        return exponents(codes(info))
    return small_values(info)


def exponents(raw: Array) -> Array:
    """E8M0: 2^(code - 127), and NaN for 255."""
    result: Array = np.where(raw == 255, np.nan, np.exp2(raw.astype(np.float64) - 127)).astype(np.float32)
    return result


def small_values(info: TensorInfo) -> Array:
    """Values of a type of one byte, or of a float type, as float32."""
    if info.dtype == "F8_E4M3":
        return np.asarray(E4M3[codes(info)])
    if info.dtype == "F8_E5M2":
        return np.asarray(E5M2[codes(info)])
    if info.dtype == "I8":
        return codes(info).view(np.int8).astype(np.float32)
    if info.dtype not in FLOATS:
        raise NotFloats(f"{info.name} has type {info.dtype}")
    return read_array(info).astype(np.float32).reshape(info.shape)


def fields(packed: Array, bits: int, axis: int) -> Array:
    """Unsigned fields of 32-bit words, the lowest bits first, spread along `axis`; float32 is exact for them."""
    if bits not in (2, 4, 8):
        raise NotFloats(f"fields of {bits} bits are not decoded")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    spread = (np.moveaxis(packed, axis, -1)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return np.moveaxis(spread.reshape(*spread.shape[:-2], -1), -1, axis)
