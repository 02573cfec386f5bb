"""Constants and encodings of the GGUF format: tensor types and blocks, metadata values, headers to write.

Pure; `header` and `file` read files. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from trimoe.errors import CheckpointError

MAGIC = b"GGUF"

# ggml type number -> (name, values per block, bytes per block); ggml/include/ggml.h and ggml-common.h
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    28: ("F64", 1, 8),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    22: ("IQ2_S", 256, 82),
    18: ("IQ3_XXS", 256, 98),
    21: ("IQ3_S", 256, 110),
    19: ("IQ1_S", 256, 50),
    29: ("IQ1_M", 256, 56),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}

# Value types of metadata: number -> struct letter; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
INTEGERS = {0, 1, 2, 3, 4, 5, 10, 11}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Field:
    """One metadata entry; `raw` is its complete encoding in the file (key, type, value)."""

    key: str
    kind: int
    raw: bytes

    @property
    def payload(self) -> memoryview:
        """The value's bytes, after key and type."""
        return memoryview(self.raw)[8 + len(self.key.encode()) + 4 :]

    def value(self) -> Any:
        """The value in Python; arrays become lists, strings that are not UTF-8 keep their bytes escaped."""
        return _decode(self.kind, self.payload, 0)[0]


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; its rows (last axis) must be whole blocks."""
    _, block, size = TYPES[NUMBERS[dtype]]
    return prod(shape) // block * size


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // alignment) * alignment


def _decode(kind: int, data: memoryview, at: int) -> tuple[Any, int]:
    if kind in SCALARS:
        form = "<" + SCALARS[kind]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return bytes(data[at + 8 : at + 8 + length]).decode(errors="backslashreplace"), at + 8 + length
    item, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if item in SCALARS:
        form = f"<{count}{SCALARS[item]}"
        return list(struct.unpack_from(form, data, at)), at + struct.calcsize(form)
    values = []
    for _ in range(count):
        value, at = _decode(item, data, at)
        values.append(value)
    return values, at


def scalar_field(key: str, kind: int, value: int) -> Field:
    """A metadata entry with an integer. Raises `CheckpointError` if the type cannot hold it."""
    name = key.encode()
    try:
        payload = struct.pack("<" + SCALARS[kind], value)
    except (KeyError, struct.error) as exc:
        raise CheckpointError(f"key {key} cannot hold {value}", actual=f"type {kind}") from exc
    return Field(key, kind, struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + payload)


def header_bytes(
    version: int, fields: Iterable[Field], tensors: dict[str, tuple[str, tuple[int, ...]]], alignment: int
) -> bytes:
    """The header of a file that holds `tensors` (name -> type, row-major shape) in this order, padded to its data.

    The tensors follow it, each padded to the alignment, including the last one.
    """
    fields = list(fields)
    parts = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(fields)), *(f.raw for f in fields)]
    offset = 0
    for name, (dtype, shape) in tensors.items():
        raw = name.encode()
        dims = shape[::-1]
        parts.append(struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", NUMBERS[dtype], offset))
        offset += padded(nbytes_of(dtype, shape), alignment)
    header = b"".join(parts)
    return header + bytes(padded(len(header), alignment) - len(header))
