"""How a model is identified: a content hash from samples, seconds at any size, and a description of one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trimoe.model.safetensors import TensorInfo, read_bytes

SAMPLE = 64 << 10
SMALL = 1 << 20


def add_tensors(digest: Any, index: Mapping[str, TensorInfo]) -> None:
    """Add names, types, shapes, all bytes of tensors up to 1 MiB and three 64 KiB samples of each larger one.

    The result identifies a model. It does not prove integrity: certificates do.
    """
    for name in sorted(index):
        info = index[name]
        digest.update(f"{name}|{info.dtype}|{info.shape}|".encode())
        if info.nbytes <= SMALL:
            digest.update(read_bytes(info))
        else:
            for offset in (0, (info.nbytes - SAMPLE) // 2, info.nbytes - SAMPLE):
                digest.update(read_bytes(info, offset, SAMPLE))


class Countable(Protocol):
    """What the one-line description of a model is made of."""

    @property
    def path(self) -> Path:
        """Directory or file."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""

    @property
    def top_k(self) -> int:
        """Experts that the router selects for a token."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""


def describe(model: Countable, family: str) -> str:
    """A model in one line, as its `repr`."""
    size = f"{model.nbytes / 1e9:.1f} GB" if model.nbytes >= 1e9 else f"{model.nbytes / 1e6:.1f} MB"
    counts = f"{model.num_layers} layers, {model.num_experts} experts, top-{model.top_k}"
    return f"{type(model).__name__}({model.path.name!r}, {family}, {counts}, {size})"
