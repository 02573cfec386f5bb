"""MXFP4: 4-bit values (E2M1), two to a byte with the lower half first, and an exponent for each 32 of them.

gpt-oss stores [experts, outputs, blocks, 16] and is used as [experts, inputs, outputs]: `transpose`.
"""

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, codes, exponents
from trimoe.model.nvfp4 import VALUES

_BLOCK = 32


def plan(parts: Parts, settings: Settings, transpose: bool = False) -> Planned:
    """Shape and decoder."""
    main, factors = parts["main"], parts["scale"]
    blocked = len(main.shape) == len(factors.shape) + 1
    rows = main.shape[:-2] if blocked else main.shape[:-1]
    count = int(np.prod(main.shape)) * 2 // max(1, int(np.prod(rows)))
    if factors.shape != (*rows, count // _BLOCK) or factors.dtype not in ("U8", "F8_E8M0"):
        raise NotFloats(f"{factors.name} {list(factors.shape)} does not fit {main.name} {list(main.shape)}")
    shape = (*rows, count)
    swapped = (*shape[:-2], shape[-1], shape[-2]) if transpose else shape

    def matrix(packed: Array, by: Array) -> Array:
        flat = packed.reshape(-1)
        values = np.empty((len(flat), 2), np.float32)
        values[:, 0], values[:, 1] = VALUES[flat & 15], VALUES[flat >> 4]
        scaled = values.reshape(-1, _BLOCK) * exponents(by).reshape(-1, 1)
        result: Array = scaled.reshape(*packed.shape[: 1 if by.ndim < 3 else 2], -1)
        return result

    def decode() -> Array:
        packed, by = codes(main), codes(factors)
        if len(shape) == 2:
            return matrix(packed.reshape(shape[0], -1), by).reshape(shape)
        out = np.empty(swapped, np.float32)
        for i in range(shape[0]):  # one expert at a time: the stack is large
            one = matrix(packed[i].reshape(shape[1], -1), by[i]).reshape(shape[1:])
            out[i] = one.T if transpose else one
        return out

    return swapped, decode
