"""One pass over the weights of a pruned model that compares every byte and hashes it: the hash is of what was compared.

Invariants: each file of the pruned model is opened once and read from its first to its last byte; the same block in
memory goes to the comparison and to sha256. A tensor counts as equal only if all its bytes were compared. Memory is two
4 MiB buffers whatever the model's size.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trimoe.certify.expected import Expected, Index, row_layout
from trimoe.errors import CheckpointError
from trimoe.io.progress import Progress
from trimoe.model.safetensors import TensorInfo

BLOCK = 4 << 20


@dataclass
class Compared:
    """What one pass found. `equal` holds tensors whose every byte is right, `sha256` the hash of each file read."""

    equal: set[str] = field(default_factory=set)
    sha256: dict[Path, str] = field(default_factory=dict)


def compare_bytes(
    expected: Mapping[str, Expected],
    pruned: Index,
    files: Iterable[Path] | None = None,
    progress: Progress | None = None,
    healed: Collection[str] = (),
) -> Compared:
    """Compare every tensor of `pruned` with what is expected of it, and hash `files` (default: the files of `pruned`).

    `healed` tensors and those without the expected type and shape are hashed and not compared. Raises `CheckpointError`
    for a file that ends early.
    """
    found = Compared()
    by_file: dict[Path, list[TensorInfo]] = {path: [] for path in sorted(files or ())}
    for info in pruned.values():
        by_file.setdefault(info.file, []).append(info)
    total, done = sum(path.stat().st_size for path in by_file), 0
    with ThreadPoolExecutor(1, thread_name_prefix="trimoe-sha256") as pool, _Sources() as sources:
        for path, tensors in by_file.items():
            with path.open("rb", buffering=0) as handle:
                reader = _Reader(handle, path, pool)
                for info in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
                    reader.skip_to(info.start)
                    want = expected.get(info.name)
                    if want is None or info.name in healed or (info.dtype, info.shape) != (want.dtype, want.shape):
                        reader.skip_to(info.end)
                    elif reader.compare(want, sources):
                        found.equal.add(info.name)
                    if progress is not None:
                        progress(done + reader.at, total, "comparing bytes")
                reader.skip_to(os.fstat(handle.fileno()).st_size)
                found.sha256[path] = reader.digest()
                done += reader.at
    return found


def source_ranges(want: Expected) -> Iterator[tuple[int, int]]:
    """(offset, length) in the original's tensor of the bytes that make up the expected one, in its order."""
    if want.kept is None:
        yield 0, want.source.nbytes
        return
    outer, row = row_layout(want.source, want.axis)
    experts = want.source.shape[want.axis]
    for block in range(outer):
        start = end = want.kept[0] if want.kept else 0
        for expert in want.kept:  # adjacent rows are one range
            if expert != end:
                yield (block * experts + start) * row, (end - start) * row
                start = expert
            end = expert + 1
        yield (block * experts + start) * row, (end - start) * row


def narrowed_blocks(want: Expected) -> Iterator[tuple[int, int, int, int, tuple[int, ...]]]:
    """(byte in the original's tensor, outer, entries along the axis, bytes per entry, kept entries) of each kept
    expert: its values are [outer, entries]."""
    info, single = want.source, want.expert is not None
    inner = info.shape if single else info.shape[1:]
    axis = want.along if single else want.along - 1
    size = info.nbytes if single else info.nbytes // info.shape[0]
    outer, length = prod(inner[:axis]), inner[axis]
    for expert, kept in zip((0,) if single else want.kept or (), want.entries or (), strict=True):
        yield size * expert, outer, length, size // (outer * length), kept


class _Sources:
    """Open files of the original."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> "_Sources":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            handle.close()

    def fill(self, info: TensorInfo, offset: int, view: memoryview) -> None:
        """Read bytes of an original tensor. Raises `CheckpointError` for a short file."""
        if info.file not in self._open:
            self._open[info.file] = info.file.open("rb", buffering=0)
        fill(self._open[info.file].fileno(), view, info.file, info.start + offset)


class _Reader:
    """Reads one file forward; what it reads is hashed by another thread while the original is read and compared."""

    def __init__(self, handle: BinaryIO, path: Path, pool: ThreadPoolExecutor) -> None:
        self._handle, self._path, self._pool = handle, path, pool
        self._hash = hashlib.sha256()
        self._have, self._want = memoryview(bytearray(BLOCK)), memoryview(bytearray(BLOCK))
        self.at = 0

    def skip_to(self, end: int) -> None:
        """Hash without comparing: headers, padding, tensors that are not expected."""
        while self.at < end:
            self._read(min(BLOCK, end - self.at)).result()

    def compare(self, want: Expected, sources: _Sources) -> bool:
        """Read the bytes of one tensor to its end; whether they are the expected ones of the original."""
        if want.entries is not None:
            return self._compare_entries(want, sources)
        same = True
        for offset, length in source_ranges(want):
            for at in range(offset, offset + length, BLOCK):
                count = min(BLOCK, offset + length - at)
                hashed = self._read(count)
                if same:
                    sources.fill(want.source, at, self._want[:count])
                    same = self._have[:count] == self._want[:count]
                hashed.result()
        return same

    def _compare_entries(self, want: Expected, sources: _Sources) -> bool:
        """As `compare`, for a tensor of which each expert keeps some entries of an axis."""
        same = True
        for start, outer, length, entry, kept in narrowed_blocks(want):
            mask = np.zeros(length, bool)
            mask[list(kept)] = True
            width = min(length, max(1, BLOCK // entry))
            rows = max(1, BLOCK // (length * entry)) if width == length else 1
            for row in range(0, outer, rows):
                count = min(rows, outer - row)
                for first in range(0, length, width):
                    part = mask[first : first + width]
                    hashed = self._read(count * int(part.sum()) * entry)
                    if same:
                        source = self._want[: count * len(part) * entry]
                        sources.fill(want.source, start + (row * length + first) * entry, source)
                        cells = np.frombuffer(source, np.uint8).reshape(count, len(part), entry)
                        have = np.frombuffer(self._have, np.uint8, count * int(part.sum()) * entry)
                        same = bool(np.array_equal(cells[:, part].ravel(), have))
                    hashed.result()
        return same

    def digest(self) -> str:
        """Hex sha256 of all bytes so far."""
        return self._hash.hexdigest()

    def _read(self, count: int) -> Future[None]:
        """Read the next bytes into `_have` and start hashing them."""
        block = self._have[:count]
        fill(self._handle.fileno(), block, self._path, self.at)
        self.at += count
        return self._pool.submit(self._hash.update, block)


def fill(fd: int, view: memoryview, path: Path, offset: int) -> None:
    """Fill `view` with the file's bytes from `offset`. Raises `CheckpointError` for a short file."""
    got = 0
    while got < len(view):
        count = os.preadv(fd, [view[got:]], offset + got)
        if count == 0:
            raise CheckpointError(
                f"{path} ends early",
                expected=f"{len(view) - got} more bytes at {offset + got}",
                remedy="the file changed while it was read; wait until nothing writes to it and run again",
            )
        got += count
