"""NVFP4: blocks of 16 values with an E4M3 scale, and a float32 scale per matrix. Matrices, and stacks of them, packed
along the inputs wherever these are.
"""

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, codes, scales
from trimoe.model.nvfp4 import BLOCK, dequantize


def plan(parts: Parts, settings: Settings, divides: bool = False) -> Planned:
    """Shape and decoder. `divides`: the scale of the matrix divides (compressed-tensors) instead of multiplying."""
    main, blocks, whole = parts["main"], parts["scale"], parts["whole"]
    shape = main.shape
    inputs = next((a for a in (len(shape) - 1, len(shape) - 2) if blocks.shape == _blocks(shape, a)), None)
    if len(shape) not in (2, 3) or inputs is None or blocks.dtype != "F8_E4M3" or whole.dtype != "F32":
        raise NotFloats(f"{main.name} has no scales of NVFP4 beside it")
    if int(np.prod(whole.shape)) not in (1, shape[0] if len(shape) == 3 else 1):
        raise NotFloats(f"{whole.name} {list(whole.shape)} does not fit {list(shape)}")
    swapped = inputs != len(shape) - 1
    full = tuple(n * 2 if axis == inputs else n for axis, n in enumerate(shape))

    def matrix(packed: Array, by: Array, factor: np.float32) -> Array:
        if swapped:
            return dequantize(np.ascontiguousarray(packed.T), np.ascontiguousarray(by.T), factor).T
        return dequantize(packed, by, factor)

    def decode() -> Array:
        packed, by, factors = codes(main), codes(blocks), scales(whole).reshape(-1)
        factors = np.float32(1) / factors if divides else factors
        if len(shape) == 2:
            return matrix(packed, by, factors[0])
        out = np.empty(full, np.float32)
        for i in range(shape[0]):
            out[i] = matrix(packed[i], by[i], factors[i % len(factors)])
        return out

    return full, decode


def _blocks(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Shape of the block scales of packed values of `shape`, with the inputs along `axis`."""
    return tuple(n * 2 // BLOCK if i == axis else n for i, n in enumerate(shape))
