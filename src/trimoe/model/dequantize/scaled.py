"""Values of one byte (E4M3, E5M2, int8) times scales: one per tensor, output, group of inputs, or block.

DeepSeek's `weight_scale_inv` multiplies too: it is the inverse of what the values were multiplied by.
"""

from collections.abc import Sequence

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, scales, small_values


def plan(parts: Parts, settings: Settings, divide: float = 1) -> Planned:
    """Shape and decoder of a matrix [outputs, inputs] or a stack of them. `divide`: the scales are of this range."""
    main, factors, zeros = parts["main"], parts["scale"], parts.get("zero")
    if len(main.shape) not in (2, 3):
        raise NotFloats(f"{main.name} is not a matrix")
    block = settings.get("weight_block_size")

    def decode() -> Array:
        values = small_values(main)
        by = spread(scales(factors), values.shape, block, factors.name)
        if zeros is not None:
            values -= spread(small_values(zeros), values.shape, block, zeros.name)
        values *= by
        return values / np.float32(divide) if divide != 1 else values

    return main.shape, decode


def spread(by: Array, shape: tuple[int, ...], block: Sequence[int] | None, name: str) -> Array:
    """Scales that broadcast against a tensor of `shape`."""
    if by.size == 1:
        return by.reshape((1,) * len(shape))
    if by.ndim < len(shape):  # one for each output, or for each matrix of a stack
        if by.shape[0] != shape[0]:
            raise NotFloats(f"{name} {list(by.shape)} does not fit values {list(shape)}")
        by = by.reshape(*by.shape, *(1,) * (len(shape) - by.ndim))
    for axis in range(len(shape)):
        have, want = by.shape[axis], shape[axis]
        if have in (1, want):
            continue
        size = block[axis - len(shape)] if block and axis >= len(shape) - 2 else 0
        if not size or -(-want // size) != have:
            size, left = divmod(want, have)
            if left:
                raise NotFloats(f"{name} {list(by.shape)} does not fit values {list(shape)}")
        by = np.repeat(by, size, axis).take(range(want), axis)
    return by
