"""GGUF by our own hands: headers, tensors as byte ranges, split files.

Invariants: `read_gguf` accepts only files that llama.cpp would map: versions 2 and 3, little endian, tensors in the
order of their data without gaps beyond alignment, no name twice, sizes that follow from type and shape and end with the
file. Metadata are kept as the bytes they were. A hostile header costs at most `MAX_HEADER` bytes of memory. The checks
are those of ggml/src/gguf.cpp in the pinned release.
"""

import re
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from trimoe.errors import CheckpointError
from trimoe.model.gguf.format import ARRAY, INTEGERS, MAGIC, SCALARS, STRING, TYPES, Field, nbytes_of, padded
from trimoe.model.safetensors import TensorInfo

MAX_HEADER = 128 << 20  # a vocabulary of 262,144 tokens with its merges takes 15 MiB
MAX_STRINGS = 4_000_000  # of all arrays of one file
MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME = 255
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


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


@dataclass(frozen=True)
class Gguf:
    """A model or imatrix in one file or in the parts of a split; metadata are those of the first file."""

    files: tuple[GgufFile, ...]
    index: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The (first) file."""
        return self.files[0].path

    @property
    def fields(self) -> dict[str, Field]:
        """Metadata of the first file, split keys included."""
        return self.files[0].fields

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(info.nbytes for info in self.index.values())

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self.fields[key].value() if key in self.fields else default

    def integer(self, key: str) -> int | None:
        """The value of a key that must be an integer; None if it is absent or of another type."""
        found = self.fields.get(key)
        return int(found.value()) if found is not None and found.kind in INTEGERS else None


def is_gguf(path: Path) -> bool:
    """Whether this is a file that is, or by its name wants to be, GGUF."""
    if path.is_dir():
        return False
    try:
        with path.open("rb") as handle:
            return handle.read(4) == MAGIC or path.suffix == ".gguf"
    except OSError:
        return path.suffix == ".gguf"


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only model (or first part) in a directory; None if it is none.

    Raises `CheckpointError` if a directory holds several.
    """
    if not path.is_dir():
        return path if is_gguf(path) else None
    if (path / "config.json").exists():
        return None
    named = [file for file in sorted(path.glob("*.gguf")) if not file.name.startswith(".")]
    first = [f for f in named if (m := _SPLIT_NAME.fullmatch(f.name)) is None or int(m[2]) == 1]
    if len(first) > 1:
        raise CheckpointError(
            f"{path} holds several models",
            expected="one",
            actual=", ".join(f.name for f in first[:5]),
            remedy="give the file itself",
        )
    return first[0] if first else None


def _bad(subject: str, **facts: str) -> CheckpointError:
    facts.setdefault("remedy", "download or copy the file again; a GGUF file must be complete")
    return CheckpointError(subject, **facts)


class _Header:
    """Reads forward through a header; nothing is read twice, and never more than `MAX_HEADER` bytes."""

    def __init__(self, handle: BinaryIO, path: Path, size: int) -> None:
        self.handle, self.path, self.size = handle, path, size
        self.data = bytearray()
        self.at = 0
        self.strings = 0

    def need(self, count: int) -> int:
        """Make `count` more bytes available; returns where they start and moves on behind them."""
        start, end = self.at, self.at + count
        if MAX_HEADER < end <= self.size:
            raise _bad(
                f"{self.path} has a header that is too large",
                expected=f"at most {MAX_HEADER} bytes",
                actual=f"at least {end}",
                remedy="this is not a model file",
            )
        if end > len(self.data):
            if end > self.size:
                raise _bad(
                    f"{self.path} ends inside its header", expected=f"at least {end} bytes", actual=f"{self.size} bytes"
                )
            self.data += self.handle.read(max(end - len(self.data), 1 << 20))
            if end > len(self.data):
                raise _bad(f"{self.path} became shorter while it was read", expected="a file at rest")
        self.at = end
        return start

    def number(self, letter: str) -> int:
        """One little-endian number."""
        form = "<" + letter
        return int(struct.unpack_from(form, self.data, self.need(struct.calcsize(form)))[0])

    def text(self, what: str, limit: int) -> str:
        """A string that names something: UTF-8, not empty, not longer than `limit` bytes."""
        length = self.number("Q")
        if not 1 <= length <= limit:
            raise _bad(f"{self.path} has a {what} of {length} bytes", expected=f"1 to {limit} bytes")
        start = self.need(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as exc:
            raise _bad(f"{self.path} has a {what} that is not UTF-8", actual=str(exc)[:100]) from exc

    def skip_value(self, kind: int, key: str) -> None:
        """Move behind a value, checking that it is one."""
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
                raise _bad(
                    f"{self.path}: key {key} is an array of type {item}",
                    expected="numbers or strings",
                    remedy="llama.cpp cannot read such a key either",
                )
        else:
            raise _bad(f"{self.path}: key {key} has the unknown type {kind}", expected="0 to 12")

    def _skip_strings(self, count: int, key: str) -> None:
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise _bad(f"{self.path}: key {key} is an array of {count} strings", expected=f"at most {MAX_STRINGS}")
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
        with path.open("rb") as handle:
            return _read(_Header(handle, path, size))
    except FileNotFoundError as exc:
        raise _bad(f"{path} not found", expected="a GGUF file", remedy="check the path") from exc
    except OSError as exc:
        raise _bad(f"{path} cannot be read", actual=str(exc)[:200], remedy="check the path and its rights") from exc


def _read(header: _Header) -> GgufFile:
    path = header.path
    start = header.need(min(4, header.size))
    if bytes(header.data[start : start + 4]) != MAGIC:
        raise _bad(
            f"{path} is not a GGUF file",
            expected="the first four bytes GGUF",
            actual=repr(bytes(header.data[:4])),
            remedy="check the path",
        )
    version = header.number("I")
    if version not in (2, 3):
        big = version != 0 and version & 0xFFFF == 0
        raise _bad(
            f"{path} is GGUF version {version}" if not big else f"{path} is big-endian GGUF",
            expected="version 2 or 3, little endian",
            remedy="convert the model again",
        )
    tensors, fields = header.number("Q"), header.number("Q")
    if tensors > MAX_TENSORS or fields > MAX_FIELDS:
        raise _bad(
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
            raise _bad(f"tensor {name} stands twice in {path}")
        if data_start + offset != at:
            raise _bad(
                f"tensor {name} in {path} overlaps another or leaves a gap",
                expected=f"offset {at - data_start}",
                actual=f"offset {offset}",
            )
        end = at + nbytes_of(dtype, shape)
        if end > header.size:
            raise _bad(
                f"tensor {name} in {path} lies beyond the end of the file: the file is truncated",
                expected=f"{end} bytes",
                actual=f"{header.size} bytes",
            )
        index[name] = TensorInfo(name, dtype, shape, path, at, end)
        at = padded(end, alignment)
    # The last tensor's padding may be missing: llama.cpp does not need it.
    last = max((info.end for info in index.values()), default=data_start)
    if not last <= header.size <= max(padded(last, alignment), padded(data_start, alignment)):
        raise _bad(f"{path} does not end with its last tensor", expected=f"{at} bytes", actual=f"{header.size} bytes")
    return GgufFile(path, version, found, index, alignment, data_start, header.size)


def _read_fields(header: _Header, count: int) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for _ in range(count):
        start = header.at
        key = header.text("key", 65535)
        if key in fields:
            raise _bad(f"{header.path}: key {key[:200]} stands twice")
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
        raise _bad(
            f"{path} has an impossible general.alignment",
            expected="a power of two from 8 on, as uint32",
            actual=str(found.value())[:50],
        )
    return int(value)


def _read_tensor(header: _Header) -> tuple[str, str, tuple[int, ...], int]:
    """(name, type, row-major shape, offset) of the next tensor."""
    name = header.text("tensor name", MAX_NAME)
    dimensions = header.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise _bad(f"tensor {name} in {header.path} has {dimensions} dimensions", expected=f"at most {MAX_DIMENSIONS}")
    shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
    number = header.number("I")
    offset = header.number("Q")
    if number not in TYPES:
        raise _bad(
            f"tensor {name} in {header.path} has the unknown type {number}",
            expected="a type of the pinned llama.cpp",
            remedy="a newer trimoe may know it",
        )
    dtype, block, _ = TYPES[number]
    if prod(shape) >= 1 << 62 or any(length >= 1 << 62 for length in shape):
        raise _bad(f"tensor {name} in {header.path} is impossibly large", actual=str(list(shape)))
    if (shape[-1] if shape else 1) % block:
        raise _bad(
            f"tensor {name} in {header.path} has rows that are no whole blocks",
            expected=f"a multiple of {block} values for {dtype}",
            actual=str(list(shape)),
        )
    return name, dtype, shape, offset


def open_gguf(path: Path) -> Gguf:
    """A GGUF file, with all parts if it is one of a split. Raises `CheckpointError`."""
    first = read_gguf(path)
    count = _split_value(first, "split.count") or 1
    files = [first]
    if count > 1:
        match = _SPLIT_NAME.fullmatch(path.name)
        if match is None or int(match[3]) != count:
            raise _bad(
                f"{path} is one of {count} parts and is not named like one",
                expected=f"NAME-00001-of-{count:05d}.gguf",
                remedy="give it its original name",
            )
        files = [read_gguf(path.with_name(split_name(match[1], i, count))) for i in range(count)]
    index: dict[str, TensorInfo] = {}
    for number, file in enumerate(files):
        if count > 1 and (_split_value(file, "split.no"), _split_value(file, "split.count")) != (number, count):
            raise _bad(
                f"{file.path} is not part {number + 1} of {count}",
                expected=f"split.no {number}, split.count {count}",
                actual=f"{_split_value(file, 'split.no')}, {_split_value(file, 'split.count')}",
            )
        for name, info in file.tensors.items():
            if name in index:
                raise _bad(f"tensor {name} stands in two parts", actual=f"{index[name].file.name}, {file.path.name}")
            index[name] = info
    total = _split_value(files[0], "split.tensors.count")
    if count > 1 and total != len(index):
        raise _bad(
            f"{files[0].path.name} and its parts do not hold the tensors they announce",
            expected=str(total),
            actual=str(len(index)),
        )
    return Gguf(tuple(files), index)


def _split_value(file: GgufFile, key: str) -> int | None:
    found = file.fields.get(key)
    return int(found.value()) if found is not None and found.kind in INTEGERS else None


def split_name(stem: str, number: int, count: int) -> str:
    """llama.cpp's name of part `number` (from 0) of `count`."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def split_stem(name: str) -> str:
    """A file's name without .gguf and without the number of a part."""
    match = _SPLIT_NAME.fullmatch(name)
    return match[1] if match else name.removesuffix(".gguf")
