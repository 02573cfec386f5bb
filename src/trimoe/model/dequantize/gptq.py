"""GPTQ (AutoGPTQ, GPTQModel, AutoRound): integers in 32-bit words along the inputs, zero points along the outputs.

Value: scale x (code - zero). Zero points are stored less one, except in the format `gptq_v2`; without any, the middle
of the range is the zero. `g_idx` is the group of each input.
"""

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, fields, scales, words
from trimoe.model.safetensors import read_array


def plan(parts: Parts, settings: Settings) -> Planned:
    """Shape and decoder of a matrix [outputs, inputs]."""
    main, factors, zeros, order = parts["main"], parts["scale"], parts.get("zero"), parts.get("order")
    bits = settings.get("bits", 4)
    if bits not in (2, 4, 8) or len(main.shape) != 2 or len(factors.shape) != 2:
        raise NotFloats(f"{main.name}: GPTQ with {bits} bits is not decoded")
    inputs, outputs = main.shape[0] * 32 // bits, main.shape[1]
    groups = factors.shape[0]
    if factors.shape[1] != outputs or (order is None and inputs % groups):
        raise NotFloats(f"{factors.name} {list(factors.shape)} does not fit {inputs} inputs and {outputs} outputs")
    less_one = settings.get("checkpoint_format") != "gptq_v2"

    def decode() -> Array:
        values = fields(words(main), bits, 0).astype(np.float32)
        group = read_array(order) if order is not None else np.arange(inputs) // (inputs // groups)
        zero = np.full((groups, outputs), 1 << (bits - 1), np.float32)
        if zeros is not None:
            zero = fields(words(zeros), bits, 1)[:, :outputs].astype(np.float32) + np.float32(less_one)
        values -= zero[group]
        values *= scales(factors)[group]
        return np.ascontiguousarray(values.T)

    return (outputs, inputs), decode
