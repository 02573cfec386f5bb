"""NVFP4 in numpy: 16 weights share an E4M3 scale, a tensor a float32 scale; the bytes of NVIDIA Model Optimizer 0.47.

For a tensor with largest magnitude `amax`: scale_2 = amax / (6 x 448). For a block: scale = E4M3(amax of the block /
(6 x scale_2)), clipped to [2^-9, 448], and 1 for a block of zeros. For a weight: E2M1(w / (scale x scale_2)), where
E2M1 is one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign, ties to the even code. All in float32, each operation rounded
once. Source: get_weights_scaling_factor, _cast_per_block_scale_to_fp8 and _cast_fp4 in
modelopt/torch/quantization/qtensor/nvfp4_tensor.py.
One deliberate difference: a tensor whose weights are all 0, or all below 2^-116, gets scale_2 = 1 and zeros. For such a
tensor Model Optimizer divides 0 by 0 and stores NaN, and float32 cannot hold the reciprocal of compressed-tensors.

Invariants: the bytes depend on the values alone, not on slices or threads; buffers do not grow with the tensor. Not
guaranteed: anything about weights that are not finite; `largest` refuses them.
"""

import threading
from dataclasses import dataclass

import numpy as np

from trimoe.errors import CheckpointError
from trimoe.model.nvfp4 import BLOCK, E4M3, Array

_CHUNK = 32768
"""Blocks per step (9 MiB of buffers). A single thread is fastest with 8192, which fits its cache; two threads are twice
as fast with this size, because they wait for the interpreter lock after each short operation."""
_NOTHING = np.float32(2.0**-116)
_MAGNITUDE, _INFINITE = (
    {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFFFFFF},
    {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000},
)
_BITS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4"}
FLOATS = tuple(_BITS)
"""Types of weights that can be quantized."""


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix [rows, columns].

    `packed` uint8 [rows, columns/2], the even column in the low half of a byte; `scales` uint8 [rows, columns/16], the
    bits of E4M3; `error` and `norm` are the squared error and squared norm.
    """

    packed: Array
    scales: Array
    error: float
    norm: float


def bits_of(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """The bytes of a floating tensor as unsigned integers of its width."""
    return np.frombuffer(data, _BITS[dtype]).reshape(shape)


def largest(bits: Array, dtype: str, name: str) -> np.float32:
    """The largest magnitude. Raises `CheckpointError` naming the tensor if a value is NaN or infinite."""
    flat, top = bits.reshape(-1) if bits.flags.c_contiguous else np.ascontiguousarray(bits).reshape(-1), 0
    for start in range(0, flat.size, 1 << 18):
        top = max(top, int((flat[start : start + (1 << 18)] & _MAGNITUDE[dtype]).max()))
    if top >= _INFINITE[dtype]:
        raise CheckpointError(
            f"tensor {name} holds NaN or infinite values",
            expected="finite weights",
            remedy="the file is damaged or the model diverged: download it again or use another checkpoint",
        )
    return np.float32(floats(np.array([top], _BITS[dtype]), dtype)[0])


def floats(bits: Array, dtype: str) -> Array:
    """The values as float32; exact."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view("<f2").astype(np.float32) if dtype == "F16" else bits.view("<f4").astype(np.float32)


def scale_2(amax: np.float32) -> np.float32:
    """The scale of a whole tensor; 1 for a tensor of zeros."""
    return np.float32(1.0) if amax < _NOTHING else np.float32(amax) / np.float32(6.0 * 448.0)


def global_scale(amax: np.float32) -> np.float32:
    """The reciprocal, which compressed-tensors stores instead (its generate_gparam)."""
    return np.float32(1.0) if amax < _NOTHING else np.float32(6.0 * 448.0) / np.float32(amax)


def e4m3(values: Array) -> Array:
    """Bits of E4M3 (without infinities) nearest to float32 values within [2^-9, 448]; ties to even."""
    bits = values.view(np.uint32)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # the exponent bias of float32 is 120 larger
    # Below 2^-6 the step is 2^-9, the last place of 2^14: adding 2^14 rounds and leaves the count in the low bits.
    small = (values + np.float32(16384.0)).view(np.uint32) & 0xF
    return np.where(values < np.float32(2.0**-6), small, normal).astype(np.uint8)


def quantize(bits: Array, dtype: str, scale: np.float32) -> Quantized:
    """Quantize a matrix of `bits_of` with the tensor's `scale_2`; the number of columns is a multiple of 16."""
    rows, columns = bits.shape
    blocks = np.ascontiguousarray(bits).reshape(-1, BLOCK)
    packed, scales = np.empty((len(blocks), BLOCK // 2), np.uint8), np.empty(len(blocks), np.uint8)
    error = norm = 0.0
    with np.errstate(under="ignore", over="ignore"):
        for start in range(0, len(blocks), _CHUNK):
            end = min(start + _CHUNK, len(blocks))
            part = _workspace(end - start)
            part.load(blocks[start:end], dtype)
            scales[start:end] = part.divide(scale)
            more, total = part.encode(packed[start:end])
            error, norm = error + more, norm + total
    return Quantized(packed.reshape(rows, columns // 2), scales.reshape(rows, columns // BLOCK), error, norm)


_of_thread = threading.local()


def _workspace(blocks: int) -> "_Workspace":
    """This thread's buffers as views of `blocks` blocks, reused because allocation costs more than the arithmetic."""
    kept: _Workspace | None = getattr(_of_thread, "workspace", None)
    if kept is None or kept.capacity < blocks:
        kept = _of_thread.workspace = _Workspace(blocks)
    kept.see(blocks)
    return kept


class _Workspace:
    """Buffers with one row for each of the 16 places in a block, so that every operation reads memory in order.

    Even places come first: a byte holds an even and an odd one.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._floats = np.empty((2, BLOCK * capacity), np.float32)
        self._bytes = np.empty((3, BLOCK * capacity), np.uint8)
        self._pairs = np.empty(BLOCK // 2 * capacity, np.uint32)

    def see(self, blocks: int) -> None:
        """Set the views to the part of the buffers that `blocks` blocks need."""
        count = BLOCK * blocks
        self._values, self._other = (buffer[:count].reshape(BLOCK, blocks) for buffer in self._floats)
        self._codes, self._mask, self._twice = (buffer[:count].reshape(BLOCK, blocks) for buffer in self._bytes)
        self._words = self._pairs[: count // 2].reshape(BLOCK // 2, blocks)

    def load(self, blocks: Array, dtype: str) -> None:
        """Values of `blocks` [n, 16] as float32."""
        if dtype == "BF16":  # two weights in a word: the lower is the even one
            np.copyto(self._words, blocks.view("<u4").T)
            bits = self._values.view(np.uint32)
            np.left_shift(self._words, 16, out=bits[: BLOCK // 2])
            np.bitwise_and(self._words, 0xFFFF0000, out=bits[BLOCK // 2 :])
        else:
            values = floats(blocks, dtype)
            np.copyto(self._values[: BLOCK // 2], values[:, 0::2].T)
            np.copyto(self._values[BLOCK // 2 :], values[:, 1::2].T)

    def divide(self, scale: np.float32) -> Array:
        """Compute the block scales and divide by them. Returns the bits of the scales."""
        np.abs(self._values, out=self._other)
        top = self._other.max(axis=0)
        ratio = top / (np.float32(6.0) * scale)
        ratio[ratio == 0] = 1.0
        codes = e4m3(np.clip(ratio, np.float32(2.0**-9), np.float32(448.0)))
        self._factors = np.take(E4M3, codes, mode="clip") * scale
        np.divide(self._values, self._factors, out=self._values)
        return codes

    def encode(self, packed: Array) -> tuple[float, float]:
        """Write the codes of the scaled values to `packed` [n, 8]. Returns squared error and squared norm, unscaled."""
        codes, mask, twice, size = self._codes, self._mask, self._twice, self._other
        flags = mask.view(np.bool_)
        np.abs(self._values, out=size)
        # A code counts the bounds below the value; at a bound the even code wins. `twice` is 2 x the value of the code.
        np.greater(size, np.float32(0.25), out=codes.view(np.bool_))
        for bound, reached in ((0.75, np.greater_equal), (1.25, np.greater), (1.75, np.greater_equal)):
            reached(size, np.float32(bound), out=flags)
            np.add(codes, mask, out=codes)
        np.copyto(twice, codes)
        for bound, reached, step in ((2.5, np.greater, 2), (3.5, np.greater_equal, 2), (5.0, np.greater, 4)):
            reached(size, np.float32(bound), out=flags)
            np.add(codes, mask, out=codes)
            np.multiply(mask, step, out=mask)
            np.add(twice, mask, out=twice)
        np.less(self._values, np.float32(0), out=flags)
        np.multiply(mask, 8, out=mask)  # numpy vectorises products of bytes, not shifts
        np.bitwise_or(codes, mask, out=codes)
        self._pack(packed)
        return self._errors()

    def _pack(self, packed: Array) -> None:
        """Even places in the low half of each byte, odd ones in the high half."""
        half = BLOCK // 2
        odd = self._mask[half:]
        np.multiply(self._codes[half:], 16, out=odd)
        np.bitwise_or(odd, self._codes[:half], out=odd)
        np.copyto(packed, odd.T)

    def _errors(self) -> tuple[float, float]:
        """Sum over the blocks in float64, within a block in float32."""
        rounded, factors = self._values, self._factors.astype(np.float64) ** 2
        norms = np.einsum("ij,ij->j", self._other, self._other)
        np.multiply(self._twice, np.float32(0.5), out=rounded, casting="unsafe")
        np.subtract(self._other, rounded, out=rounded)
        errors = np.einsum("ij,ij->j", rounded, rounded)
        return float(errors @ factors), float(norms @ factors)
