"""An output tensor of a cut, and the bytes of the source that it is copied from."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from trimoe.model.safetensors import TensorInfo, nbytes_of

Keeps = dict[int, tuple[int, ...]]
"""Kept expert ids, ascending, of each layer with experts."""


@dataclass(frozen=True)
class Block:
    """A part of a source tensor of which only some entries of one axis are kept.

    It begins at byte `start` of the file and is [`outer`, `length`] entries of `entry` bytes; those numbered `keep` of
    every `length` are copied.
    """

    start: int
    outer: int
    length: int
    entry: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """An output tensor, and the part of a source tensor it is copied from: all of it, or the rows `keep` of `axis`.

    With `blocks`, it is their kept entries one block after the other.
    """

    name: str
    shape: tuple[int, ...]
    source: TensorInfo
    axis: int = 0
    keep: tuple[int, ...] | None = None
    blocks: tuple[Block, ...] | None = None

    @property
    def dtype(self) -> str:
        """The source's type; a cut never converts."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return nbytes_of(self.dtype, self.shape)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Absolute [start, end) byte ranges of the source file in output order; adjacent ones are joined."""
        info = self.source
        if self.keep is None:
            if info.nbytes:
                yield info.start, info.end
            return
        outer, experts = prod(info.shape[: self.axis]), info.shape[self.axis]
        row = info.nbytes // (outer * experts)
        start = end = info.start
        for block in range(outer):
            for expert in self.keep:
                at = info.start + (block * experts + expert) * row
                if at != end:
                    if end > start:
                        yield start, end
                    start = at
                end = at + row
        if end > start:
            yield start, end
