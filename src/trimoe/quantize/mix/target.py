"""Target of a measured mix: its size, the text to measure on, and the types to choose from."""

from dataclasses import dataclass
from pathlib import Path

from trimoe.errors import UsageError
from trimoe.quantize.mix.options import TYPES
from trimoe.quantize.types.tensor_types import TARGETS


@dataclass(frozen=True)
class MixTarget:
    """Target of a mix: at most `nbytes` of file, or `bits` per weight of the whole file; measured on `text`."""

    nbytes: int | None = None
    bits: float | None = None
    text: Path | None = None
    """Default: the text that the imatrix is made from."""
    types: tuple[str, ...] = TYPES
    chunks: int = 32
    context: int = 512

    def __post_init__(self) -> None:
        """Refuse contradictions and unknown types."""
        if (self.nbytes is None) == (self.bits is None):
            raise UsageError(
                "a mix needs one target",
                expected="--target-size SIZE or --target-bpw BITS",
                actual="neither" if self.nbytes is None else "both",
                remedy="give one of them",
            )
        if (compared := self.chunks * (self.context - 1 - self.context // 2)) < 100:
            raise UsageError(
                "too little text to measure a mix on",
                expected="at least 100 tokens compared",
                actual=f"{compared}: half of {self.chunks} chunks of {self.context}",
                remedy="raise --mix-chunks or --mix-context",
            )
        for kind in self.types:
            if kind not in TARGETS:
                raise UsageError(
                    f"{kind} is not a type that a tensor can have",
                    expected=", ".join(TARGETS),
                    actual=kind,
                    remedy="correct --mix-types",
                )

    @property
    def name(self) -> str:
        """Name of the tier: AUTO-12.9GB, AUTO-4.8bpw."""
        if self.bits is not None:
            return f"AUTO-{self.bits:g}bpw"
        assert self.nbytes is not None
        return f"AUTO-{self.nbytes / 1e9:.6g}GB" if self.nbytes >= 10**9 else f"AUTO-{self.nbytes / 1e6:.6g}MB"

    def budget(self, values: int) -> int:
        """Bytes of the file for a model of `values` weights."""
        return self.nbytes if self.nbytes is not None else int((self.bits or 0) * values / 8)
