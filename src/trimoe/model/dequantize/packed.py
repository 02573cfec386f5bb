"""compressed-tensors `pack-quantized`: integers in 32-bit words along the inputs, an offset of half their range."""

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, codes, fields, scales, words
from trimoe.model.dequantize.scaled import spread
from trimoe.model.safetensors import TensorInfo, read_array


def plan(parts: Parts, settings: Settings) -> Planned:
    """Shape and decoder of a matrix [outputs, inputs]."""
    main, factors, zeros, order = parts["main"], parts["scale"], parts.get("zero"), parts.get("order")
    if len(main.shape) != 2:
        raise NotFloats(f"{main.name} is not a matrix")
    if "shape" in parts:  # tells the bits too: groups of modules may have different ones
        shape = tuple(int(i) for i in read_array(parts["shape"]))
        bits = next((b for b in (2, 4, 8) if -(-shape[-1] * b // 32) == main.shape[1]), 0)
    else:
        bits = _bits(settings)
        shape = (main.shape[0], main.shape[1] * 32 // bits)
    if not bits or len(shape) != 2 or shape[0] != main.shape[0] or -(-shape[1] * bits // 32) != main.shape[1]:
        raise NotFloats(f"{main.name} {list(main.shape)} does not hold {list(shape)} values of {bits} bits")

    def decode() -> Array:
        middle = np.float32(1 << (bits - 1))
        values = fields(words(main), bits, 1)[:, : shape[1]].astype(np.float32) - middle
        by = scales(factors)
        offsets = None if zeros is None else _zeros(zeros, bits, shape[0])
        if order is not None:
            groups = read_array(order)
            by, offsets = by[:, groups], None if offsets is None else offsets[:, groups]
        if offsets is not None:
            values -= spread(offsets, shape, None, main.name)
        values *= spread(by, shape, None, factors.name)
        return values

    return shape, decode


def _zeros(info: TensorInfo, bits: int, rows: int) -> Array:
    """Zero points [outputs, groups]: packed along the outputs, or one byte each."""
    if info.dtype == "I8":
        return codes(info).view(np.int8).astype(np.float32)
    return fields(words(info), bits, 0)[:rows].astype(np.float32) - np.float32(1 << (bits - 1))


def _bits(settings: Settings) -> int:
    groups = settings.get("config_groups")
    found = {
        group["weights"]["num_bits"]
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict) and "num_bits" in group["weights"]
    }
    if len(found) != 1:
        raise NotFloats(f"config.json states {sorted(found) or 'no'} numbers of bits for packed integers")
    return int(found.pop())
