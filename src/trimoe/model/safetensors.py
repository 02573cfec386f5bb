"""A minimal safetensors reader without dependencies: headers, byte ranges, lazy reads. Holds at most one tensor.

Invariants: `read_index` accepts only files with an exact header: sizes match shapes, ranges cover the data without gaps
or overlaps, no tensor is listed twice, every shard is present and complete. Format: 8 bytes little-endian header
length, JSON header, data.
"""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimoe.errors import CheckpointError
from trimoe.io.expand import TooLarge, require_regular
from trimoe.io.jsonfile import each_key_once, parse_json

if TYPE_CHECKING:  # imported where it is used: cuts need no arrays, and numpy is half of their start-up time
    import numpy as np

ITEM_BITS = {
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
_NUMPY = {
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
    "F32": "<f4",
    "I32": "<i4",
    "U32": "<u4",
    "F16": "<f2",
    "I16": "<i2",
    "U16": "<u2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
MAX_HEADER = 100_000_000  # the format's own limit
MAX_TENSORS = 500_000  # of a checkpoint; Kimi K2 in int4, with three tensors per matrix, has 210,000
MORE_TENSORS = "TRIMOE_MAX_TENSORS"
"""Environment variable with another limit."""
MAX_DIMENSIONS = 16  # no real tensor comes near; limits what a hostile header can make us compute


@dataclass(frozen=True)
class TensorInfo:
    """Location of a tensor's bytes: `file[start:end]`, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this type and shape (types below 8 bits are packed)."""
    return math.prod(shape) * ITEM_BITS[dtype] // 8


def _bad(subject: str, **facts: str) -> CheckpointError:
    facts.setdefault("remedy", "download or copy the file again; a checkpoint must be complete")
    return CheckpointError(subject, **facts)


def require_few_tensors(path: Path, count: int) -> None:
    """Raise `CheckpointError` for more tensors than `MAX_TENSORS`, or than the environment variable allows."""
    text = os.environ.get(MORE_TENSORS, "")
    most = int(text) if text.isascii() and text.isdecimal() else MAX_TENSORS
    if count > most:
        raise CheckpointError(
            f"{path} has {count:,} tensors",
            expected=f"at most {most:,}",
            remedy=f"set {MORE_TENSORS} to a higher number if this is right",
        )


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors (absolute offsets) and metadata of one file. Raises `CheckpointError` naming file and tensor."""
    try:
        size = path.stat().st_size
        require_regular(path)
        with path.open("rb") as handle:
            prefix = handle.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise _bad(
                    f"{path} is not a safetensors file or is truncated",
                    expected="a header within the file",
                    actual=f"header length {length}, file size {size}",
                )
            header = parse_json(handle.read(length), object_pairs_hook=each_key_once)
    except TooLarge as exc:
        raise CheckpointError(
            f"{path} is not a regular file",
            expected="a file of weights",
            actual="a pipe, a device or a directory",
            remedy="copy its content into a file",
        ) from exc
    except FileNotFoundError as exc:
        raise _bad(f"shard {path.name} is missing from {path.parent}", expected="every shard of the index") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise _bad(f"{path} has an unreadable header", actual=str(exc)[:200]) from exc
    if not isinstance(header, dict):
        raise _bad(f"{path} has a header that is not a JSON object")
    metadata = header.pop("__metadata__", {})
    require_few_tensors(path, len(header))
    base, tensors = 8 + length, {}
    for name, entry in header.items():
        tensors[name] = _tensor(path, name, entry, base, size)
    at = base
    for info in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
        if info.start != at:
            raise _bad(
                f"tensor {info.name} in {path} overlaps another or leaves a gap",
                expected=f"offset {at}",
                actual=f"offset {info.start}",
            )
        at = info.end
    if at != size:
        raise _bad(f"{path} does not end with its last tensor", expected=f"{at} bytes", actual=f"{size} bytes")
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise _bad(f"{path} has malformed metadata in its header", expected="an object of strings")
    return tensors, metadata


def _tensor(path: Path, name: str, entry: Any, base: int, size: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        integers = all(type(v) is int and 0 <= v < 1 << 62 for v in (*shape, start, end))
        if dtype not in ITEM_BITS or not integers or start > end or len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{dtype} {shape[:MAX_DIMENSIONS]} {start}:{end}")
    except (TypeError, KeyError, ValueError) as exc:
        raise _bad(f"tensor {name[:200]!r} in {path} has a malformed entry", actual=str(exc)[:200]) from exc
    if base + end > size:
        raise _bad(
            f"tensor {name} in {path} lies beyond the end of the file: the file is truncated",
            expected=f"{base + end} bytes",
            actual=f"{size} bytes",
        )
    if nbytes_of(dtype, shape) != end - start:
        raise _bad(
            f"tensor {name} in {path} has a size that is not its shape's",
            expected=f"{nbytes_of(dtype, shape)} bytes",
            actual=f"{end - start} bytes",
        )
    return TensorInfo(name, dtype, shape, path, base + start, base + end)


def read_bytes(info: TensorInfo, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a tensor from `offset`. Raises `CheckpointError` for a short read."""
    length = info.nbytes - offset if length is None else length
    with info.file.open("rb") as handle:
        data = os.pread(handle.fileno(), length, info.start + offset)
        while len(data) < length:
            more = os.pread(handle.fileno(), length - len(data), info.start + offset + len(data))
            if not more:
                raise _bad(f"tensor {info.name} in {info.file} ends early")
            data += more
    return data


def read_array(info: TensorInfo) -> "np.ndarray":
    """The tensor as a numpy array; BF16 and F16 become float32, all other types are kept."""
    import numpy as np

    raw = read_bytes(info)
    if info.dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(info.shape)
    if info.dtype not in _NUMPY:
        return np.frombuffer(raw, np.uint8)
    array = np.frombuffer(raw, _NUMPY[info.dtype]).reshape(info.shape)
    return array.astype(np.float32) if info.dtype == "F16" else array


def header_bytes(entries: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """The header of a file that holds `entries` (name -> dtype, shape) in this order, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in entries.items():
        end = at + nbytes_of(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
