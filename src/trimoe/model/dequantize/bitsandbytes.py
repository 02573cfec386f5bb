"""bitsandbytes NF4 and FP4: a stream of codes, the upper half of a byte first, with a largest value per block.

The largest values may be quantized themselves (nested): 8-bit codes of a table, with scales and an offset. The number
of values, block sizes and offset are in the quantization state, JSON in a tensor.
"""

import json
from typing import Any

import numpy as np

from trimoe.model.dequantize.parts import Array, NotFloats, Parts, Planned, Settings, codes
from trimoe.model.safetensors import TensorInfo, read_array, read_bytes


def plan(parts: Parts, settings: Settings) -> Planned:
    """Shape and decoder of a matrix [outputs, inputs]."""
    main, largest, table = parts["main"], parts["scale"], parts["table"]
    state = _state(parts["state"])
    nested = largest.dtype == "U8"
    if nested and not {"nested_scale", "nested_table"} <= parts.keys():
        raise NotFloats(f"{largest.name} is quantized, and its nested state is missing")
    shape = tuple(int(n) for n in state["shape"])
    count, block = int(np.prod(shape)), int(state["blocksize"])
    if int(np.prod(main.shape)) != -(-count // 2) or int(np.prod(largest.shape)) != -(-count // block):
        raise NotFloats(f"{main.name} does not hold {list(shape)} values in blocks of {block}")

    def decode() -> Array:
        raw, values = codes(main).reshape(-1), np.empty(2 * int(np.prod(main.shape)), np.float32)
        by_code = read_array(table)
        values[0::2], values[1::2] = by_code[raw >> 4], by_code[raw & 15]
        by = _nested(parts, state) if nested else read_array(largest).astype(np.float32)
        return (values[:count] * np.repeat(by.reshape(-1), block)[:count]).reshape(shape)

    return shape, decode


def _nested(parts: Parts, state: dict[str, Any]) -> Array:
    raw = codes(parts["scale"]).reshape(-1)
    by = np.repeat(read_array(parts["nested_scale"]), int(state["nested_blocksize"]))[: len(raw)]
    result: Array = read_array(parts["nested_table"])[raw] * by + np.float32(state["nested_offset"])
    return result


def _state(info: TensorInfo) -> dict[str, Any]:
    try:
        state = json.loads(read_bytes(info))
        if not isinstance(state, dict) or not {"shape", "blocksize"} <= state.keys():
            raise ValueError
    except ValueError:
        raise NotFloats(f"{info.name} is no quantization state") from None
    return state
