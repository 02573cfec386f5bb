"""The header of one GGUF file: metadata and tensors as byte ranges, every field checked.

Invariants: only files are accepted that llama.cpp would map: versions 2 and 3, little endian, tensors in the order of
their data without gaps beyond alignment, no name twice, sizes that follow from type and shape and end with the file.
Metadata keep their original bytes. A hostile header costs at most `MAX_HEADER` bytes of memory. The checks are those of
ggml/src/gguf.cpp in the pinned release.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from trimoe.errors import CheckpointError
from trimoe.io.expand import TooLarge, require_regular
from trimoe.model.gguf.format import ARRAY, MAGIC, SCALARS, STRING, TYPES, Field, nbytes_of, padded
from trimoe.model.safetensors import TensorInfo

MAX_HEADER = 128 << 20  # a vocabulary of 262,144 tokens with its merges takes 15 MiB
MAX_STRINGS = 4_000_000  # of all arrays of one file
MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME = 255
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufFile:
    """The header of one file. `tensors` keep the order of their data; shapes are row-major, the slowest axis first."""

    path: Path
    version: int
    fields: dict[str, Field]
    tensors: dict[str, TensorInfo]
    alignment: int
    data_start: int
    size: int


def bad_file(subject: str, **facts: str) -> CheckpointError:
    """The error for a file that is not as it should be, with a default remedy."""
    facts.setdefault("remedy", "download or copy the file again; a GGUF file must be complete")
    return CheckpointError(subject, **facts)


class _Header:
    """Reads a header forward, each byte once and never more than `MAX_HEADER` of them."""

    def __init__(self, handle: BinaryIO, path: Path, size: int) -> None:
        self.handle, self.path, self.size = handle, path, size
        self.data = bytearray()
        self.at = 0
        self.strings = 0

    def need(self, count: int) -> int:
        """Make `count` more bytes available and move past them; returns where they start."""
        start, end = self.at, self.at + count
        if MAX_HEADER < end <= self.size:
            raise bad_file(
                f"{self.path} has a header that is too large",
                expected=f"at most {MAX_HEADER} bytes",
                actual=f"at least {end}",
                remedy="this is not a model file",
            )
        if end > len(self.data):
            if end > self.size:
                raise bad_file(
                    f"{self.path} ends inside its header", expected=f"at least {end} bytes", actual=f"{self.size} bytes"
                )
            self.data += self.handle.read(max(end - len(self.data), 1 << 20))
            if end > len(self.data):
                raise bad_file(f"{self.path} became shorter while it was read", expected="a file that does not change")
        self.at = end
        return start

    def number(self, letter: str) -> int:
        """One little-endian number."""
        form = "<" + letter
        return int(struct.unpack_from(form, self.data, self.need(struct.calcsize(form)))[0])

    def text(self, what: str, limit: int) -> str:
        """The string of a name: UTF-8, not empty, at most `limit` bytes."""
        length = self.number("Q")
        if not 1 <= length <= limit:
            raise bad_file(f"{self.path} has a {what} of {length} bytes", expected=f"1 to {limit} bytes")
        start = self.need(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as exc:
            raise bad_file(f"{self.path} has a {what} that is not UTF-8", actual=str(exc)[:100]) from exc

    def skip_value(self, kind: int, key: str) -> None:
        """Move past a value, checking that it is one."""
        if kind in SCALARS:
            self.need(struct.calcsize("<" + SCALARS[kind]))
        elif kind == STRING:
            self.need(self.number("Q"))
        elif kind == ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item in SCALARS:
                self.need(count * struct.calcsize("<" + SCALARS[item]))
            elif item == STRING:
                self._skip_strings(count, key)
            else:
                raise bad_file(
                    f"{self.path}: key {key} is an array of type {item}",
                    expected="numbers or strings",
                    remedy="llama.cpp cannot read such a key either",
                )
        else:
            raise bad_file(f"{self.path}: key {key} has the unknown type {kind}", expected="a GGUF value type, 0 to 12")

    def _skip_strings(self, count: int, key: str) -> None:
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise bad_file(f"{self.path}: key {key} is an array of {count} strings", expected=f"at most {MAX_STRINGS}")
        unpack, data = struct.Struct("<Q").unpack_from, self.data
        for _ in range(count):
            # need() inlined: this loop runs half a million times in a common file
            start = self.at
            self.at = start + 8
            if self.at > len(data):
                self.at = start
                self.need(8)
            self.at += unpack(data, start)[0]
            if self.at > len(data):
                length = self.at - start - 8
                self.at = start + 8
                self.need(length)


def read_gguf(path: Path) -> GgufFile:
    """The header of one file, every field checked. Raises `CheckpointError` naming file and tensor or key."""
    try:
        size = path.stat().st_size
        require_regular(path)
        with path.open("rb") as handle:
            return _read(_Header(handle, path, size))
    except TooLarge as exc:
        raise bad_file(
            f"{path} is not a regular file",
            expected="a GGUF file",
            actual="a pipe, a device or a directory",
            remedy="copy its content into a file",
        ) from exc
    except FileNotFoundError as exc:
        raise bad_file(f"{path} not found", expected="a GGUF file", remedy="check the path") from exc
    except OSError as exc:
        raise bad_file(f"{path} cannot be read", actual=str(exc)[:200], remedy="check the path and its rights") from exc


def _read(header: _Header) -> GgufFile:
    path = header.path
    start = header.need(min(4, header.size))
    if bytes(header.data[start : start + 4]) != MAGIC:
        raise bad_file(
            f"{path} is not a GGUF file",
            expected="the first four bytes GGUF",
            actual=repr(bytes(header.data[:4])),
            remedy="check the path",
        )
    version = header.number("I")
    if version not in (2, 3):
        big = version != 0 and version & 0xFFFF == 0
        raise bad_file(
            f"{path} is GGUF version {version}" if not big else f"{path} is big-endian GGUF",
            expected="version 2 or 3, little endian",
            remedy="convert the model again",
        )
    tensors, fields = header.number("Q"), header.number("Q")
    if tensors > MAX_TENSORS or fields > MAX_FIELDS:
        raise bad_file(
            f"{path} has an impossible header",
            expected=f"at most {MAX_TENSORS} tensors, {MAX_FIELDS} keys",
            actual=f"{tensors} tensors, {fields} keys",
        )
    found = _read_fields(header, fields)
    alignment = _alignment(path, found)
    entries = [_read_tensor(header) for _ in range(tensors)]
    data_start = padded(header.at, alignment) if entries else header.at
    index: dict[str, TensorInfo] = {}
    at = data_start
    for name, dtype, shape, offset in entries:
        if name in index:
            raise bad_file(f"tensor {name} is listed twice in {path}", expected="each name once")
        if data_start + offset != at:
            raise bad_file(
                f"tensor {name} in {path} overlaps another or leaves a gap",
                expected=f"offset {at - data_start}",
                actual=f"offset {offset}",
            )
        end = at + nbytes_of(dtype, shape)
        if end > header.size:
            raise bad_file(
                f"tensor {name} in {path} extends past the end of the file: the file is truncated",
                expected=f"{end} bytes",
                actual=f"{header.size} bytes",
            )
        index[name] = TensorInfo(name, dtype, shape, path, at, end)
        at = padded(end, alignment)
    # The last tensor's padding may be missing: llama.cpp does not need it.
    last = max((info.end for info in index.values()), default=data_start)
    if not last <= header.size <= max(padded(last, alignment), padded(data_start, alignment)):
        raise bad_file(
            f"{path} does not end with its last tensor", expected=f"{at} bytes", actual=f"{header.size} bytes"
        )
    return GgufFile(path, version, found, index, alignment, data_start, header.size)


def _read_fields(header: _Header, count: int) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for _ in range(count):
        start = header.at
        key = header.text("key", 65535)
        if key in fields:
            raise bad_file(f"{header.path}: key {key[:200]} is listed twice", expected="each key once")
        kind = header.number("I")
        header.skip_value(kind, key[:200])
        fields[key] = Field(key, kind, bytes(header.data[start : header.at]))
    return fields


def _alignment(path: Path, fields: dict[str, Field]) -> int:
    if "general.alignment" not in fields:
        return DEFAULT_ALIGNMENT
    found = fields["general.alignment"]
    value = found.value() if found.kind == 4 else 0
    if not (8 <= value <= 1 << 20 and value & (value - 1) == 0):
        raise bad_file(
            f"{path} has an impossible general.alignment",
            expected="a power of two of at least 8, as uint32",
            actual=str(found.value())[:50],
        )
    return int(value)


def _read_tensor(header: _Header) -> tuple[str, str, tuple[int, ...], int]:
    """(name, type, row-major shape, offset) of the next tensor."""
    name = header.text("tensor name", MAX_NAME)
    dimensions = header.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise bad_file(
            f"tensor {name} in {header.path} has {dimensions} dimensions", expected=f"at most {MAX_DIMENSIONS}"
        )
    shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
    number = header.number("I")
    offset = header.number("Q")
    if number not in TYPES:
        raise bad_file(
            f"tensor {name} in {header.path} has the unknown type {number}",
            expected="a type of the pinned llama.cpp",
            remedy="a newer trimoe may know it",
        )
    dtype, block, _ = TYPES[number]
    if prod(shape) >= 1 << 62 or any(length >= 1 << 62 for length in shape):
        raise bad_file(f"tensor {name} in {header.path} is impossibly large", actual=str(list(shape)))
    if (shape[-1] if shape else 1) % block:
        raise bad_file(
            f"tensor {name} in {header.path} has rows that are not whole blocks",
            expected=f"a multiple of {block} values for {dtype}",
            actual=str(list(shape)),
        )
    return name, dtype, shape, offset
