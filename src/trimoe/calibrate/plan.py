"""Memory and disk needs of a calibration run: predicted before it starts, measured after it.

The prediction adds up what the engine holds at its peak; the target is within 20 % of the measured peak.
"""

import math
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trimoe.calibrate.forward.batching import Batch
from trimoe.calibrate.recon.needs import reconstruction_bytes
from trimoe.calibrate.stats.fields import MAXIMA, Shape
from trimoe.calibrate.text.calibration import Windows
from trimoe.errors import CalibrationError, MissingPrerequisite

GB = 10**9
WARM_UP = 40 << 20
"""Memory that libraries allocate during the first forward pass (measured on Linux)."""
COVERAGE = 16
"""An expert with fewer tokens than this in a class is reported as thinly covered."""


@dataclass(frozen=True)
class Plan:
    """Predicted bytes, counts and strategy of a run, made before its first expensive step."""

    tokens: dict[str, int]
    """Counted tokens per class."""
    tokens_per_expert: dict[str, float]
    """Tokens per expert if routing were even."""
    layers: int
    windows: int
    batches: int
    padding: float
    """Share of positions that are padding."""
    dtype: str
    hidden_in_memory: bool
    prefetch: bool
    """The next layer is read during the computation of the current one, so two are in memory."""
    peak_ram: int
    peak_device: int
    """Bytes on the accelerator; 0 on a CPU."""
    disk: int
    """Bytes beside the output during the run; removed at the end."""

    @property
    def thin(self) -> dict[str, float]:
        """Classes whose experts get fewer than `COVERAGE` tokens even on average."""
        return {name: mean for name, mean in self.tokens_per_expert.items() if mean < COVERAGE}

    @property
    def how(self) -> str:
        """The strategy in words."""
        return f"hidden states {'in memory' if self.hidden_in_memory else 'on disk'}" + (
            "" if self.prefetch else ", one layer at a time without reading ahead"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        per_class = [
            f"  {name:24s} {count:>12,d} tokens, {self.tokens_per_expert[name]:,.0f} per expert"
            for name, count in self.tokens.items()
        ]
        need = f"memory {self.peak_ram / GB:.2f} GB, disk {self.disk / GB:.2f} GB"
        if self.peak_device:
            need += f", device {self.peak_device / GB:.2f} GB"
        return [
            f"{self.windows:,d} windows in {self.batches:,d} batches ({self.padding:.0%} padding), {self.dtype}",
            *per_class,
            *(
                f"warning: class {name} has {mean:.1f} tokens per expert on average, fewer than {COVERAGE}"
                for name, mean in self.thin.items()
            ),
            f"predicted: {need}; {self.how}",
        ]


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one layer that the prediction uses."""

    weights: int
    """Bytes in the forward pass's type."""
    loading: int
    """Further bytes that are needed while it is being read."""
    wide: int
    """Values per token of the widest result outside the experts (attention heads, dense FFN)."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model that the prediction uses."""

    layers: Sequence[LayerSizes]
    embedding: int
    """Bytes of the rows of the embedding that the set uses."""
    item: int
    """Bytes of a value in the forward pass."""
    top_k: int


def make_plan(
    windows: Windows,
    batches: Sequence[Batch],
    sizes: Sizes,
    shape: Shape,
    dtype: str,
    on_cpu: bool,
    ram: int | None,
    *,
    reconstructed: int = 0,
) -> Plan:
    """Predict memory and disk. If memory exceeds `ram` (bytes; default: 80 % of what is free), first hidden states go
    to disk, then layers are no longer read ahead. `reconstructed` are the positions of the reconstruction.

    Raises `CalibrationError` for a class with fewer tokens than experts and `MissingPrerequisite` if neither suffices.
    """
    tokens = required_tokens(windows, shape.experts)
    positions = sum(batch.real.size for batch in batches)
    hidden = positions * shape.hidden * sizes.item
    largest = max(batch.real.size for batch in batches)
    arrays = _arrays(shape, len(sizes.layers))
    base = resident_memory() + WARM_UP + 3 * arrays + shape.cells * shape.hidden * 8

    recon = reconstruction_bytes(shape.experts, reconstructed, shape.hidden, sizes.item)

    def layers_of(prefetch: bool) -> int:
        return max(_layers(sizes, shape, largest, prefetch), _layers(sizes, shape, 0, prefetch) + recon)

    def ram_of(prefetch: bool, kept: int) -> int:
        if on_cpu:
            first = sizes.embedding + sizes.layers[0].weights + sizes.layers[0].loading
            return base + max(first, layers_of(prefetch)) + kept
        return base + max(layer.weights + layer.loading for layer in sizes.layers) + kept

    budget = ram if ram is not None else int(available_memory() * 0.8)
    ways = [(True, hidden), (True, 0), (False, 0)] if len(sizes.layers) > 1 else [(False, hidden), (False, 0)]
    fitting = [way for way in ways if ram_of(*way) <= budget]
    if not fitting and ram is not None:
        least = math.ceil(ram_of(*ways[-1]) / GB * 100) / 100
        raise MissingPrerequisite(
            "the memory budget is too small for this model",
            expected=f"--ram of at least {least:.2f}GB",
            actual=f"{ram / GB:.2f}GB",
            remedy="raise --ram, or lower --batch-tokens",
        )
    prefetch, kept = fitting[0] if fitting else ways[-1]
    return Plan(
        tokens=tokens,
        tokens_per_expert={name: count * sizes.top_k / shape.experts for name, count in tokens.items()},
        layers=len(sizes.layers),
        windows=len(windows.windows),
        batches=len(batches),
        padding=1 - sum(len(batch.places) for batch in batches) / positions,
        dtype=dtype,
        hidden_in_memory=kept > 0,
        prefetch=prefetch,
        peak_ram=ram_of(prefetch, kept),
        peak_device=0 if on_cpu else layers_of(prefetch),
        disk=2 * hidden + 2 * arrays,
    )


def required_tokens(windows: Windows, experts: int) -> dict[str, int]:
    """Counted tokens by class. Raises `CalibrationError` for a class with fewer tokens than experts."""
    tokens = windows.tokens()
    for name, count in tokens.items():
        if count < experts:
            raise CalibrationError(
                f"class {name} has {count} tokens for {experts} experts",
                expected="at least one per expert",
                actual=f"{count} counted tokens",
                remedy="add documents to the class",
            )
    return tokens


def _layers(sizes: Sizes, shape: Shape, positions: int, prefetch: bool) -> int:
    """Peak bytes of weights and of the largest batch: one layer computing while the next is being read."""
    worst = 0
    for layer, following in zip_longest(sizes.layers, sizes.layers[1:]):
        ahead = following.weights + following.loading if prefetch and following else 0
        working = _working(positions, layer.wide, sizes, shape)
        worst = max(worst, layer.weights + ahead + working, layer.weights + layer.loading)
    return worst


def _working(positions: int, wide: int, sizes: Sizes, shape: Shape) -> int:
    """Bytes of a batch inside a layer. The factors were measured on Gemma 4 layers of several widths.

    In the attention: the residual, its norm, and queries, keys and values before and after rotation. In the experts:
    seven hidden states, and for the rows of the most used expert the outputs in the forward's type and in float64.
    """
    attention = (2 * shape.hidden + 5.5 * wide) * sizes.item
    share = min(1.0, 8 * sizes.top_k / shape.experts)
    experts = shape.hidden * (7 * sizes.item + share * (3 * sizes.item + 12)) + share * 3 * shape.inner * sizes.item
    return int(positions * max(attention, experts))


def _arrays(shape: Shape, layers: int) -> int:
    """Bytes of the statistics of all layers. While they are assembled, up to three copies are in memory."""
    per_cell = len(shape.sums) * shape.shards + len(MAXIMA) + 2
    per_cell += shape.experts * shape.coactivation + 2 * shape.inner * shape.neurons
    return 8 * shape.cells * per_cell * layers


def available_memory() -> int:
    """Bytes available without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 1 << 62)


def resident_memory() -> int:
    """Resident bytes of this process."""
    return _own_status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def reset_peak() -> None:
    """Reset the kernel's record of this process's peak, so that the run's own peak is measured. May be refused."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Bytes of the largest resident set since `reset_peak`."""
    return _own_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _own_status(key: str) -> int:
    """Bytes of a line of /proc/self/status; 0 where the file does not exist (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)
