"""How much each expert is worth: criterion, outliers, normalisation, aggregation over classes. Pure functions.

Arrays are float64 [C, L, E] (class, layer, expert) going in and [L, E] coming out. Source of every formula: protocol
section 5 (the recipes), REAP (arXiv 2510.13999: mean of w_t |o_t| over the expert's tokens), EAN (sum of |o_t|).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.errors import RecipeError, StatsError

Array = np.ndarray[Any, np.dtype[Any]]


def _per_token(total: Array, count: Array) -> Array:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


CRITERIA: dict[str, tuple[tuple[str, ...], Callable[[ExpertStats, float], Array]]] = {
    # name: (fields that must not be all zero, score per class, layer, expert)
    "contribution": (("wnorm", "tc"), lambda s, alpha: alpha * s.field("wnorm") + s.field("tc")),
    "wnorm": (("wnorm",), lambda s, _: s.field("wnorm").copy()),
    "frequency": (("tc",), lambda s, _: s.field("tc").copy()),
    "reap": (("reap_sum", "tc"), lambda s, _: _per_token(s.field("reap_sum"), s.field("tc"))),
    "ean": (("ean_sum",), lambda s, _: s.field("ean_sum").copy()),
}


def outlier_cells(stats: ExpertStats, above: float, needed: tuple[str, ...] = ("wnorm",)) -> Array:
    """[C, L, E] bool: a needed norm is not finite, or wnorm is larger than `above` in absolute value.

    Counts (`tc`) are exact and never make an outlier.
    """
    out: Array = np.zeros(stats.shape, bool)
    for name in needed:
        if name != "tc":
            out |= ~np.isfinite(stats.field(name))
            if "wnorm" in stats.fields:
                out |= ~(np.abs(stats.fields["wnorm"]) <= above)
    return out


def require_measured(stats: ExpertStats, criterion: str) -> tuple[str, ...]:
    """The fields a criterion needs. Refuses one that is absent, or zero in all of a class: files with routing counts
    only carry zero-filled norms, so presence proves nothing."""
    if criterion not in CRITERIA:
        raise RecipeError(f"unknown criterion {criterion}", expected=", ".join([*CRITERIA, "random"]), actual=criterion)
    needed = CRITERIA[criterion][0]
    for name in needed:
        values = stats.field(name)
        for i, class_name in enumerate(stats.classes):
            if not np.any(values[i]):
                raise StatsError(
                    f"field {name} of class {class_name} is zero everywhere: it was never measured",
                    expected=f"measured {name}",
                    remedy="calibrate again, leave the class out, or use --criterion frequency",
                )
    return needed


def impute(scores: Array, bad: Array, mode: str) -> Array:
    """Repair the scores of outlier cells, row by row (a row is one class in one layer).

    median: the median over the row's sound cells; zero: 0; drop: below all sound cells, so that the class does not
    speak for the expert. Protocol section 4: not-a-number and huge values otherwise sort to the top.
    """
    fixed = scores.copy()
    for c, layer in np.argwhere(bad.any(-1)):
        broken = bad[c, layer]
        sound = scores[c, layer][~broken]
        if not sound.size or mode == "zero":
            fixed[c, layer][broken] = 0.0
        else:
            fixed[c, layer][broken] = np.median(sound) if mode == "median" else sound.min() - 1.0
    return fixed


def raw_scores(
    stats: ExpertStats, criterion: str, alpha: float, outliers: tuple[str, float] | None = None, seed: int = 0
) -> tuple[Array, int]:
    """[C, L, E] scores and the number of imputed cells. Refuses fields that are absent, all zero or not finite.

    `outliers` is (mode, limit of wnorm); None keeps every finite value. `random` draws per layer from (seed, layer).
    """
    if criterion == "random":
        _, layers, experts = stats.shape
        return np.stack([np.random.default_rng([seed, layer]).random(experts) for layer in range(layers)])[None], 0
    needed = require_measured(stats, criterion)
    scores, imputed = CRITERIA[criterion][1](stats, alpha), 0
    # a quotient can hide a broken field (NaN > 0 is false, so a guarded division gives 0)
    for name in needed:
        scores[~np.isfinite(stats.field(name))] = np.nan
    if outliers is not None and outliers[0] != "keep":
        bad = outlier_cells(stats, outliers[1], needed)
        scores, imputed = impute(scores, bad, outliers[0]), int(bad.sum())
    if not np.isfinite(scores).all():
        raise StatsError(
            f"{int((~np.isfinite(scores)).sum())} scores are not finite",
            expected="finite statistics",
            remedy="impute them with --outliers median:1e4",
        )
    return scores, imputed


def ranks(scores: Array) -> Array:
    """Ascending rank over the last axis divided by E-1; stable: among equals the lower expert id ranks lower."""
    order = np.argsort(scores, axis=-1, kind="stable")
    result = np.empty(scores.shape)
    np.put_along_axis(result, order, np.broadcast_to(np.arange(scores.shape[-1]) * 1.0, scores.shape), -1)
    out: Array = result / max(scores.shape[-1] - 1, 1)
    return out


def normalise(scores: Array, how: str) -> Array:
    """`none`, `mean` (divided by the mean of the class's layer) or `rank`."""
    if how == "none":
        return scores
    if how == "rank":
        return ranks(scores)
    if how == "mean":
        mean = scores.mean(-1, keepdims=True)
        out: Array = np.divide(scores, mean, out=np.zeros_like(scores), where=mean > 0)
        return out
    raise RecipeError(f"unknown normalisation {how}", expected="none, mean or rank")


def _top(weighted: Array, k: int) -> Array:
    return np.sort(weighted, axis=0)[::-1][:k]


AGGREGATES: dict[str, Callable[[Array, Array], Array]] = {
    # (normalised r [C, L, E], weights w [C, 1, 1]) -> [L, E]
    "max": lambda r, w: (w * r).max(0),
    "sum": lambda r, w: (w * r).sum(0),
    "mean": lambda r, w: (w * r).mean(0),
    "lp4": lambda r, w: (w * r**4).sum(0) ** 0.25,
    "softmax_t4": lambda r, w: np.log(np.exp(4 * w * r).sum(0)) / 4,
    "second": lambda r, w: _top(w * r, 2)[-1],
    "top3mean": lambda r, w: _top(w * r, 3).mean(0),
    "geomean": lambda r, w: np.exp((w * np.log(np.maximum(r, 1e-12))).sum(0) / w.sum()),
}


def aggregate(normalised: Array, weights: Array, how: str, breadth: float) -> Array:
    """[L, E]: the aggregate of the weighted classes plus `breadth` times their unweighted mean."""
    if how not in AGGREGATES:
        raise RecipeError(f"unknown aggregate {how}", expected=", ".join(AGGREGATES), actual=how)
    out: Array = AGGREGATES[how](normalised, weights[:, None, None]) + breadth * normalised.mean(0)
    return out
