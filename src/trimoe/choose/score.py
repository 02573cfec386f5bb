"""The score of each expert under a recipe: criterion, outliers, normalisation, aggregation over classes.

Pure functions of float64 arrays: [C, L, E] (class, layer, expert) in, [L, E] out. The formulas are those of section 5
of the protocol. Every sort is stable, ascending and descending: among equal values the lower expert id comes first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trimoe.calibrate.stats.criteria import CRITERIA, Array, require_measured
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.positions import of_positions
from trimoe.choose.recipe import Recipe
from trimoe.errors import RecipeError, StatsError

EXTREME = 1e6
"""A wnorm above this is a numerical accident (section 4 of the protocol). A map records how many such cells its recipe
ranked as they are."""


@dataclass(frozen=True)
class Scores:
    """The scores of a recipe before any expert is dropped."""

    aggregate: Array
    """[L, E]: the score by which experts are ranked."""
    normalised: Array
    """[C, L, E], where C is the number of classes with a weight (1 if the recipe pools them)."""
    weights: dict[str, float]
    """Weight of each class that is used."""
    imputed: int
    """Outlier cells that were repaired."""
    extreme: int
    """Cells with a finite wnorm above the limit that were ranked as they are."""


def recipe_scores(stats: ExpertStats, recipe: Recipe) -> Scores:
    """Score, normalise, aggregate. Raises `RecipeError` if no class has a weight, `StatsError` for unusable values."""
    weights = {c: w for c in stats.classes if (w := recipe.weight_of(c)) is not None}
    if not any(weights.values()):
        raise RecipeError(
            f"recipe {recipe.name} gives no class of the statistics any weight",
            expected=", ".join(recipe.class_weights),
            actual=", ".join(stats.classes),
            remedy="calibrate with such classes or override --class-weights",
        )
    chosen = [i for i, c in enumerate(stats.classes) if c in weights]
    used = of_positions(stats.of_classes(chosen), recipe.positions)
    needed = CRITERIA[recipe.criterion][0] if recipe.criterion in CRITERIA else ()
    repair = outlier_rule(recipe)
    repaired = repair is not None and recipe.criterion != "random"
    extreme = 0
    if "wnorm" in used.fields and set(needed) - {"tc"} and not repaired:
        limit = recipe.outliers.limit if recipe.outliers else EXTREME
        extreme = int((outlier_cells(used, limit) & np.isfinite(used.fields["wnorm"])).sum())
    if needed:
        require_measured(used, recipe.criterion)
    if recipe.pooled and not repaired:
        used = ExpertStats(("all",), {n: a.sum(0, keepdims=True) for n, a in used.fields.items()}, used.metadata)
    scores, imputed = raw_scores(used, recipe.criterion, recipe.alpha, repair, recipe.seed)
    if recipe.pooled:
        scores = scores.sum(0, keepdims=True)
    vector = np.ones(1) if len(scores) == 1 else np.array(list(weights.values()))
    normalised = normalise(scores, recipe.normalize)
    total = aggregate(normalised, vector, recipe.aggregate, recipe.breadth_bonus)
    if not np.isfinite(total).all():
        raise StatsError(
            f"{int((~np.isfinite(total)).sum())} aggregated scores are not finite",
            expected="finite scores",
            actual=f"{recipe.aggregate} of {recipe.normalize} scores",
            remedy="use --normalize rank",
        )
    return Scores(total, normalised, weights, imputed, extreme)


def raw_scores(
    stats: ExpertStats, criterion: str, alpha: float, outliers: tuple[str, float] | None = None, seed: int = 0
) -> tuple[Array, int]:
    """[C, L, E] scores and the number of imputed cells.

    `outliers` is (mode, limit of wnorm); None keeps every finite value. `random` draws per layer from (seed, layer).
    Raises `StatsError` for fields that are absent, all zero or not finite.
    """
    if criterion == "random":
        _, layers, experts = stats.shape
        return np.stack([np.random.default_rng([seed, layer]).random(experts) for layer in range(layers)])[None], 0
    needed = require_measured(stats, criterion)
    scores, imputed = CRITERIA[criterion][1](stats, alpha), 0
    # A quotient can hide a broken field: NaN > 0 is false, so the guarded division gives 0.
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


def outlier_rule(recipe: Recipe) -> tuple[str, float] | None:
    """(mode, limit) of a recipe that repairs outlier cells, or None where every finite value is ranked as it is."""
    if recipe.outliers is None or recipe.outliers.mode == "keep":
        return None
    return recipe.outliers.mode, recipe.outliers.limit


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


def impute(scores: Array, bad: Array, mode: str) -> Array:
    """Replace the scores of outlier cells row by row, where a row is one class in one layer.

    median: the median of the row's other cells; zero: 0; drop: below all other cells of the row, so the class gives
    the expert no support. If they are not replaced, NaN and huge values sort to the top (section 4 of the protocol).
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


def ascending(values: Array) -> list[int]:
    """Expert ids from the lowest value to the highest, stable."""
    return [int(e) for e in np.argsort(values, kind="stable")]


def descending(values: Array) -> list[int]:
    """Expert ids from the highest value to the lowest, stable."""
    return [int(e) for e in np.argsort(-values, kind="stable")]


def ranks(scores: Array) -> Array:
    """Ascending rank over the last axis divided by E - 1."""
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
