"""AWQ in its GEMM layout: 32-bit words hold eight outputs of one input, in the order of the kernels."""

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, fields, scales, words

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output that each field of a word holds, the lowest bits first."""


def plan(parts: Parts, settings: Settings) -> Planned:
    """Shape and decoder of a matrix [outputs, inputs]."""
    main, factors, zeros = parts["main"], parts["scale"], parts["zero"]
    bits = settings.get("bits", settings.get("w_bit", 4))
    version = str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm" or len(main.shape) != 2:
        raise NotFloats(f"{main.name}: AWQ of version {version} with {bits} bits is not decoded")
    inputs, outputs = main.shape[0], main.shape[1] * 8
    groups = factors.shape[0]
    if len(factors.shape) != 2 or factors.shape[1] != outputs or inputs % groups:
        raise NotFloats(f"{factors.name} {list(factors.shape)} does not fit {inputs} inputs and {outputs} outputs")

    def decode() -> Array:
        group = np.arange(inputs) // (inputs // groups)
        values = _ordered(words(main)) - _ordered(words(zeros))[group]
        values *= scales(factors)[group]
        return np.ascontiguousarray(values.T)

    return (outputs, inputs), decode


def _ordered(packed: Array) -> Array:
    stored = fields(packed, 4, 1).reshape(packed.shape[0], -1, 8)
    result = np.empty(stored.shape, np.float32)
    result[..., list(ORDER)] = stored
    return result.reshape(packed.shape[0], -1)
