"""Importance matrices (imatrix) of llama.cpp: the summed squared inputs of each weight tensor, per expert.

Two formats: GGUF (NAME.in_sum2 [matrices, inputs] and NAME.counts [matrices, 1], float32; other tensors are allowed)
and the older .dat, which holds one flat vector per tensor and no counts per expert. Both are read lazily and written
whole. Prune and quantize ask `unknown_entries` alike whether an imatrix fits a model.
Formats: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp of the pinned llama.cpp.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trimoe.errors import CheckpointError
from trimoe.io.expand import TooLarge, require_regular
from trimoe.model.gguf.file import Gguf, open_gguf
from trimoe.model.gguf.format import MAGIC, Field, header_bytes, padded
from trimoe.model.gguf.header import MAX_NAME
from trimoe.model.safetensors import TensorInfo, read_bytes

SUMS, COUNTS = ".in_sum2", ".counts"
_MAX_ENTRIES = 1 << 18


@dataclass(frozen=True)
class Entry:
    """One tensor's statistics. `counts` holds values per matrix (GGUF); `calls` is the .dat format's one number."""

    name: str
    sums: TensorInfo
    counts: TensorInfo | None = None
    calls: int = 0

    def read_sums(self) -> np.ndarray:
        """float32 [matrices, inputs], or flat from a .dat file."""
        flat = np.frombuffer(read_bytes(self.sums), "<f4")
        return flat if self.counts is None else flat.reshape(self.counts.nbytes // 4, -1)

    def read_counts(self) -> np.ndarray:
        """float32 [matrices]; from a .dat file float32 [1], the number of calls."""
        if self.counts is None:
            return np.array([self.calls], np.float32)
        return np.frombuffer(read_bytes(self.counts), "<f4")


@dataclass(frozen=True)
class Imatrix:
    """An opened file. `gguf` is None for .dat, whose trailing bytes (chunks, dataset) are kept in `trailer`."""

    path: Path
    entries: dict[str, Entry]
    gguf: Gguf | None = None
    trailer: bytes = b""

    @property
    def legacy(self) -> bool:
        """Whether this is the .dat format."""
        return self.gguf is None


def open_imatrix(path: Path) -> Imatrix:
    """Read the directory of an imatrix file of either format. Raises `CheckpointError`."""
    try:
        require_regular(path)
        with path.open("rb") as handle:
            legacy = handle.read(4) != MAGIC
    except (OSError, TooLarge) as exc:
        raise CheckpointError(f"imatrix {path} cannot be read", actual=str(exc)[:200], remedy="check the path") from exc
    return _open_dat(path) if legacy else _open_gguf(path)


def _open_gguf(path: Path) -> Imatrix:
    gguf = open_gguf(path)
    entries = {}
    for name, sums in gguf.index.items():
        if not name.endswith(SUMS):
            continue
        of = name.removesuffix(SUMS)
        counts = gguf.index.get(of + COUNTS)
        # llama.cpp drops an axis of length 1, so a single matrix is stored as a vector.
        if (
            counts is None
            or (sums.dtype, counts.dtype) != ("F32", "F32")
            or prod(counts.shape) != prod(sums.shape[:-1])
            or sums.nbytes == 0
        ):
            raise CheckpointError(
                f"the imatrix entry of {of} in {path} is malformed",
                expected=f"float32 {SUMS} [matrices, inputs] and {COUNTS} [matrices, 1]",
                actual=f"{sums.shape} and {counts.shape if counts else 'nothing'}",
            )
        entries[of] = Entry(of, sums, counts)
    alone = [name for name in gguf.index if name.endswith(COUNTS) and name.removesuffix(COUNTS) not in entries]
    if not entries or alone:
        raise CheckpointError(
            f"{path} is not an imatrix",
            expected=f"pairs of {SUMS} and {COUNTS}",
            actual=f"{len(gguf.index)} tensors, {len(entries)} pairs" + (f", {alone[0]} alone" if alone else ""),
            remedy="give a file of llama-imatrix",
        )
    return Imatrix(path, entries, gguf)


def matrices_of(shape: tuple[int, ...]) -> int:
    """Number of matrices that a weight tensor stacks: ggml's ne[2] x ne[3]. One per expert, or per head (attn_k_b)."""
    return prod(shape[:-2])


def unknown_entries(imatrix: Imatrix, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The entries whose tensor a model of these shapes does not have; llama.cpp ignores them, so they do no harm.

    Examples: a drafting block, the two halves of fused gate_up, names with " (reshaped)". Raises `CheckpointError` if
    an entry contradicts its tensor, or if the model has none of the tensors: then it is another model's.
    """
    unknown = []
    for name, entry in imatrix.entries.items():
        if name not in shapes:
            unknown.append(name)
            continue
        # llama.cpp makes the same exception: the embedding is looked up and not multiplied.
        values, needed = entry.sums.nbytes // 4, matrices_of(shapes[name]) * shapes[name][-1]
        if values != needed and name != "token_embd.weight":
            raise CheckpointError(
                f"{imatrix.path} is an imatrix of another model: its entry {name} does not fit",
                expected=f"{matrices_of(shapes[name])} x {shapes[name][-1]} values",
                actual=f"{values} values",
                remedy="make one from this model (--calibration), or cut it with the model (trimoe prune --imatrix)",
            )
    if len(unknown) == len(imatrix.entries):
        raise CheckpointError(
            f"{imatrix.path} is an imatrix of another model: this one has none of its tensors",
            expected="entries named like this model's tensors",
            actual=", ".join(unknown[:3]),
            remedy="make one from this model (--calibration), or cut it with the model (trimoe prune --imatrix)",
        )
    return tuple(unknown)


def note_on(unknown: tuple[str, ...]) -> str:
    """What to tell about `unknown_entries`."""
    names = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    return f"the imatrix has {len(unknown)} entries for tensors that this model does not have ({names})"


def _open_dat(path: Path) -> Imatrix:
    size = path.stat().st_size
    with path.open("rb") as handle:
        count = _number(handle, path)
        # each entry has at least two numbers, a byte of name and a value
        if not 1 <= count <= min(_MAX_ENTRIES, size // 16):
            raise CheckpointError(
                f"{path} is not an imatrix",
                expected="a GGUF or .dat file of llama-imatrix",
                actual=f"a first number of {count} in {size} bytes",
            )
        entries: dict[str, Entry] = {}
        for _ in range(count):
            length = _number(handle, path)
            raw = handle.read(length) if 1 <= length <= MAX_NAME else b""
            name = raw.decode(errors="replace")
            calls, values = _number(handle, path), _number(handle, path)
            start = handle.tell()
            end = start + 4 * values
            if not raw or len(raw) != length or "�" in name or name in entries or values < 1 or end > size:
                raise CheckpointError(
                    f"{path} is not an imatrix or is truncated",
                    expected="named vectors of float32",
                    actual=f"entry {name[:80]!r} with {values} values at byte {start}",
                )
            entries[name] = Entry(name, TensorInfo(name, "F32", (values,), path, start, end), None, calls)
            handle.seek(end)
        trailer = handle.read(1 << 20)
    return Imatrix(path, entries, None, trailer)


def _number(handle: BinaryIO, path: Path) -> int:
    raw = handle.read(4)
    if len(raw) != 4:
        raise CheckpointError(f"{path} ends early", expected="an imatrix of llama-imatrix", remedy="copy it again")
    return int(struct.unpack("<i", raw)[0])


def write_gguf_imatrix(
    path: Path,
    version: int,
    fields: Iterable[Field],
    alignment: int,
    shapes: dict[str, tuple[int, ...]],
    arrays: Iterable[np.ndarray],
) -> None:
    """Write float32 tensors under their full names (NAME.in_sum2, ...); `arrays` follow the order of `shapes`."""
    with path.open("wb") as out:
        out.write(header_bytes(version, fields, {name: ("F32", shape) for name, shape in shapes.items()}, alignment))
        for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
            raw = np.ascontiguousarray(array, "<f4").tobytes()
            if len(raw) != 4 * prod(shape):
                raise ValueError(f"{name} was announced as {shape} and has {len(raw)} bytes")
            out.write(raw + bytes(padded(len(raw), alignment) - len(raw)))


def write_dat_imatrix(path: Path, entries: Iterable[tuple[str, int, np.ndarray]], count: int, trailer: bytes) -> None:
    """Write `count` entries (name, calls, flat float32 values) in the .dat format."""
    with path.open("wb") as out:
        out.write(struct.pack("<i", count))
        for name, calls, values in entries:
            raw = name.encode()
            flat = np.ascontiguousarray(values, "<f4").reshape(-1)
            out.write(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, flat.size) + flat.tobytes())
        out.write(trailer)
