"""What a calibration run will need, said before it starts, and what it took, measured after it.

The prediction adds up what the engine holds at the worst moment; it is meant to be within 20 % of the measured peak.
"""

import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import CalibrationError, MissingPrerequisite
from trimoe.measure.accumulate import MAXIMA, SUMS, Batch
from trimoe.measure.calibration import Windows

BASE = 560 << 20
"""Python with torch and transformers, a model without weights, and their first forward (measured on Linux)."""


@dataclass(frozen=True)
class Plan:
    """Bytes, counts and choices of a run, before its first expensive step."""

    tokens: dict[str, int]
    """Counted tokens per class."""
    windows: int
    batches: int
    padding: float
    """Share of positions that are padding."""
    dtype: str
    hidden_in_memory: bool
    peak_ram: int
    peak_device: int
    """Bytes on the accelerator; 0 on a CPU."""
    disk: int
    """Bytes beside the output while the run goes on (it is removed at the end)."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        gib = 1 << 30
        per_class = [f"  {name:24s} {count:>12,d} tokens" for name, count in self.tokens.items()]
        where = "in memory" if self.hidden_in_memory else "on disk"
        need = f"memory {self.peak_ram / gib:.2f} GiB, disk {self.disk / gib:.2f} GiB"
        if self.peak_device:
            need += f", device {self.peak_device / gib:.2f} GiB"
        return [
            *per_class,
            f"{self.windows:,d} windows in {self.batches:,d} batches ({self.padding:.0%} padding), {self.dtype}",
            f"predicted: {need}; hidden states {where}",
        ]


@dataclass(frozen=True)
class Sizes:
    """What the prediction is made of: bytes unless said otherwise."""

    layer: int
    """Weights of the largest layer in the forward pass's type."""
    stored: int
    """The same as stored on disk."""
    converted: bool
    """The stored form differs from the one in memory (type, or one tensor per expert)."""
    embedding: int
    hidden: int
    """All hidden states between two layers."""
    hidden_size: int
    """Width H of a hidden state, in values."""
    item: int
    """Bytes of a value."""
    experts: int
    layers: int
    top_k: int
    wide: int
    """Values per token of the widest inner result (attention heads, dense FFN)."""


def make_plan(
    windows: Windows, batches: list[Batch], sizes: Sizes, shards: int, dtype: str, on_cpu: bool, ram: int | None
) -> Plan:
    """Predict memory and disk; with a budget `ram`, keep hidden states on disk if they do not fit beside the rest.

    Raises `CalibrationError` for a class with fewer tokens than experts and `MissingPrerequisite` if even that does
    not fit.
    """
    tokens = windows.tokens()
    for name, count in tokens.items():
        if count < sizes.experts:
            raise CalibrationError(
                f"class {name} has {count} tokens for {sizes.experts} experts", expected="at least one per expert",
                actual=f"{count} counted tokens", remedy="add documents to the class",
            )  # fmt: skip
    positions = sum(batch.real.size for batch in batches)
    largest = max(batch.real.size for batch in batches)
    # Two layers are there at the worst moment, plus what is being converted of the second.
    weights = 2 * sizes.layer + (sizes.stored if sizes.converted else 0)
    values = largest * (10 * sizes.hidden_size + 3 * sizes.wide) * sizes.item
    values += largest * sizes.hidden_size * 8 + largest * sizes.top_k * sizes.hidden_size // 8 * sizes.item
    sums = len(tokens) * sizes.experts * (8 * sizes.hidden_size + 8 * len(SUMS) * shards * sizes.layers * 3)
    device = max(weights, sizes.embedding) + values
    fixed = BASE + sums + (max(weights, sizes.embedding) + values if on_cpu else 2 * sizes.stored)
    limit = (ram if ram is not None else int(available_memory() * 0.8)) - fixed
    in_memory = sizes.hidden <= limit
    if ram is not None and limit < 0:
        raise MissingPrerequisite(
            "the memory budget is too small for this model", expected=f"--ram of at least {fixed / 1e9:.1f}GB",
            actual=f"{ram / 1e9:.1f}GB", remedy="give more, or fewer tokens per batch (--batch-tokens)",
        )  # fmt: skip
    kept = len(MAXIMA) + 1 + len(SUMS) * shards
    disk = 2 * sizes.hidden + 2 * len(tokens) * sizes.layers * sizes.experts * 8 * kept
    padding = 1 - sum(int(batch.real.sum()) for batch in batches) / positions
    peak = fixed + (sizes.hidden if in_memory else 0)
    return Plan(
        tokens, len(windows.windows), len(batches), padding, dtype, in_memory, peak, 0 if on_cpu else device, disk
    )


def available_memory() -> int:
    """Bytes that can be used without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62


def reset_peak() -> None:
    """Let the kernel forget this process's peak so that the run's own is measured; if it refuses, the old one stays."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Bytes of the largest resident set since `reset_peak`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
