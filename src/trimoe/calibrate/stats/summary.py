"""Summary of statistics: coverage, concentration, strongest and weakest experts, similarity of classes.

Pure functions of arrays. Values that are not finite count as the lowest in every ranking, and are reported.
Definitions: Gini coefficient of the tokens per expert in a layer, 0 when all experts get equally many and (E-1)/E when
one gets all; Jaccard index |A n B| / |A u B| of two classes' sets of k strongest experts; Spearman's rank correlation
of two classes' scores, equal scores sharing their mean rank. The latter two are means over layers.
"""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from trimoe.calibrate.stats.criteria import criterion_scores
from trimoe.calibrate.stats.expert_stats import ExpertStats

Array = np.ndarray[Any, np.dtype[Any]]
EXTREME = 1e6
"""A norm above this is a numerical accident (section 4 of the protocol). Norms are sums over windows: their mean per
window is compared."""


def summarize(
    stats: ExpertStats, by: str | None = None, *, top: int | None = None, show: int = 3, least: int = 16
) -> dict[str, Any]:
    """What `trimoe stats show` prints, JSON-ready.

    Experts are compared by the criterion `by` (default: the first that was measured of contribution, reap, frequency).
    The sets of strongest experts by which classes are compared have `top` members (default: a quarter of the experts),
    `show` experts are listed at either end, and a cell with fewer than `least` tokens is thin. Raises `StatsError` if
    nothing was measured, `UsageError` for an unknown criterion.
    """
    by, scores = criterion_scores(stats, by)
    top = min(top or max(1, stats.shape[2] // 4), stats.shape[2])
    layers = list(stats.moe_layers)
    scores = scores[:, layers]
    tc = stats.fields.get("tc")
    tc = None if tc is None else tc[:, layers]
    concentration = None if tc is None else gini(tc)
    pooled = pool(scores)
    shown = [
        {
            "layer": layer,
            "gini": None if concentration is None else _mean(concentration[:, i]),
            "top": strongest(pooled[i])[:show].tolist(),
            "bottom": strongest(pooled[i])[::-1][:show].tolist(),
            "never_used": None if tc is None else int((np.nan_to_num(tc[:, i]).sum(0) == 0).sum()),
        }
        for i, layer in enumerate(layers)
    ]
    _, all_layers, experts = stats.shape
    return {
        "num_layers": all_layers,
        "num_experts": experts,
        "moe_layers": layers,
        "model": stats.metadata.get("model"),
        "set": stats.metadata.get("set"),
        "sha256": stats.content_hash,
        "fields": {
            name: _field(name, array, stats.fields.get("cc"))
            for name, array in sorted({**stats.fields, **stats.wide}.items())
        },
        "classes": {name: _class(tc, i, least) for i, name in enumerate(stats.classes)},
        "by": by,
        "layers": shown,
        "overlap": overlap(stats.classes, scores, top),
        "gini": None
        if concentration is None
        else {name: [_number(v) for v in concentration[i]] for i, name in enumerate(stats.classes)},
        "metadata": {key: value for key, value in stats.metadata.items() if key != "document_hashes"},
    }


def gini(values: Array) -> Array:
    """[..., E] -> [...]; NaN where a value is not finite or all are zero."""
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    total = ordered.sum(-1)
    weighted = (ordered * np.arange(1, n + 1)).sum(-1)
    result = np.full(total.shape, np.nan)
    good = np.isfinite(total) & (total > 0)
    result[good] = 2 * weighted[good] / (n * total[good]) - (n + 1) / n
    return result


def pool(scores: Array) -> Array:
    """[C, L, E] -> [L, E]: the mean over classes of score / layer mean, so that every class counts the same."""
    finite = np.where(np.isfinite(scores), scores, 0.0)
    mean = finite.mean(-1, keepdims=True)
    pooled: Array = np.divide(finite, mean, out=np.zeros_like(finite), where=mean > 0).mean(0)
    pooled[~np.isfinite(scores).all(0)] = -np.inf
    return pooled


def strongest(row: Array) -> Array:
    """Expert ids from the highest score to the lowest; among equals the lower id comes first."""
    return np.argsort(-np.where(np.isfinite(row), row, -np.inf), kind="stable")


def overlap(classes: Sequence[str], scores: Array, top: int) -> dict[str, Any]:
    """Similarity of classes: for each pair, the means over layers of the Jaccard index of their `top` experts and of
    Spearman's rho."""
    count, layers, experts = scores.shape
    lowest = np.where(np.isfinite(scores), scores, -np.inf)
    sets = np.zeros(scores.shape, bool)
    ranks = np.zeros(scores.shape)
    for c in range(count):
        for layer in range(layers):
            sets[c, layer, strongest(scores[c, layer])[:top]] = True
            ranks[c, layer] = average_ranks(lowest[c, layer])
    pairs = []
    for a in range(count):
        for b in range(a + 1, count):
            both, either = (sets[a] & sets[b]).sum(-1), (sets[a] | sets[b]).sum(-1)
            rho = [_correlation(ranks[a, layer], ranks[b, layer]) for layer in range(layers)]
            known = [r for r in rho if r is not None]
            pairs.append(
                {
                    "classes": [classes[a], classes[b]],
                    "jaccard": float((both / either).mean()),
                    "spearman": float(np.mean(known)) if known else None,
                }
            )
    return {"top": top, "chance": chance_jaccard(experts, top), "pairs": pairs}


def chance_jaccard(experts: int, top: int) -> float:
    """Expected Jaccard index of two random sets of `top` experts (hypergeometric distribution)."""
    whole = comb(experts, top)
    least = max(0, 2 * top - experts)
    return sum(comb(top, k) * comb(experts - top, top - k) / whole * k / (2 * top - k) for k in range(least, top + 1))


def average_ranks(row: Array) -> Array:
    """Ascending ranks from 0, equal values sharing their mean rank."""
    _, place, counts = np.unique(row, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[place]


def _correlation(a: Array, b: Array) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size > 0 else None


def _class(tc: Array | None, c: int, least: int) -> dict[str, Any]:
    if tc is None:
        return {"routed_tokens": None, "cells": None, "never_used": None, "thin": None, "least": least}
    used = np.nan_to_num(tc[c], nan=0.0, posinf=0.0, neginf=0.0)
    return {
        # Every layer routes every token, so the sum of any layer is tokens x top-k.
        "routed_tokens": float(used[0].sum()) if len(used) else 0.0,
        "cells": int(used.size),
        "never_used": int((used == 0).sum()),
        "thin": int((used < least).sum()),
        "least": least,
    }


def _field(name: str, array: Array, windows: Array | None) -> dict[str, Any]:
    """`windows` [C, L, E] is the number of windows that hit the expert (cc); without it the sum itself is compared."""
    norm = name in ("wnorm", "rnorm")
    limit = EXTREME * (1 if windows is None else np.maximum(np.nan_to_num(windows, posinf=1.0), 1))
    return {
        "nonfinite": int((~np.isfinite(array)).sum()),
        "all_zero": not np.any(array),
        "extreme": int((np.isfinite(array) & (np.abs(array) > limit)).sum()) if norm else 0,
    }


def _mean(values: Array) -> float | None:
    """Mean of the finite values, or None."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
