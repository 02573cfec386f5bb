"""Per-layer arrays -> `ExpertStats`: totals by field name, bootstrap shards beside them.

Invariants: a total is the sum of its shards in shard order; `metadata["merge"]` records how a field that is not
additive merges ("max", or "none" if it cannot be merged). The rows of layers without experts are zero.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import (
    COACTIVATION,
    COUNT,
    MAXIMA,
    MEAN_VECTOR,
    NEURON_CONTRIBUTION,
    NEURONS,
    RECON_ERROR,
    RECON_RANK,
    SUMS,
)
from trimoe.calibrate.text.calibration import Windows


def shard_field(shard: int, name: str) -> str:
    """Name of an additive field restricted to one bootstrap shard."""
    return f"shard{shard:02d}/{name}"


def assemble(
    layers: Sequence[dict[str, np.ndarray]], windows: Windows, about: dict[str, Any], moe_layers: Sequence[int]
) -> ExpertStats:
    """Statistics of all layers; `about` (model, set, how) joins the metadata."""
    fields: dict[str, np.ndarray] = {}
    for name in (name for name in layers[0] if name in SUMS or "/" in name):
        split = np.stack([layer[name] for layer in layers], 2)  # [class, shard, layer, expert]
        total = np.zeros_like(split[:, 0])
        for shard in range(split.shape[1]):
            fields[shard_field(shard, name)] = split[:, shard]
            total = total + split[:, shard]
        fields[name] = total
    for name in (COUNT, *MAXIMA, MEAN_VECTOR):
        fields[name] = np.stack([layer[name] for layer in layers], 1)
    for name in (RECON_RANK, RECON_ERROR):
        if any(name in layer for layer in layers):
            fields[name] = np.stack([layer.get(name, np.zeros_like(layer[COUNT])) for layer in layers], 1)
    wide = {
        name: np.stack([layer[name] for layer in layers], 1)
        for name in (COACTIVATION, NEURONS, NEURON_CONTRIBUTION)
        if name in layers[0]
    }
    masked = {
        what: {c: [int(layer[what][i]) for layer in layers] for i, c in enumerate(windows.classes)}
        for what in ("masked_tokens", "masked_outputs")
    }
    metadata = {
        "tokens": windows.tokens(),
        "positions": windows.positions(),
        "documents": windows.documents,
        "windows": {c: sum(w.category == i for w in windows.windows) for i, c in enumerate(windows.classes)},
        "moe_layers": list(moe_layers),
        "nonfinite": {c: sum(masked["masked_tokens"][c]) + sum(masked["masked_outputs"][c]) for c in windows.classes},
        **masked,
        "merge": {**dict.fromkeys(MAXIMA, "max"), **dict.fromkeys((MEAN_VECTOR, RECON_RANK, RECON_ERROR), "none")},
        **windows.origin,
        **about,
    }
    return ExpertStats(windows.classes, fields, metadata, wide)


def shards_of(stats: ExpertStats) -> list[ExpertStats]:
    """The bootstrap shards as statistics of their own (additive fields only); empty if there are none."""
    result = []
    for shard in range(int(stats.metadata.get("shards", 0))):
        names = [name for name in SUMS if shard_field(shard, name) in stats.fields]
        fields = {name: stats.field(shard_field(shard, name)) for name in names}
        result.append(ExpertStats(stats.classes, fields, {**stats.metadata, "shard": shard}))
    return result
