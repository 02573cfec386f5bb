"""Recipe + statistics -> drop map. The order of the steps is that of protocol section 5.

score -> normalise -> aggregate -> protect (top, floor) -> drop the lowest -> class minimum -> forced keeps.
Every sort is stable, ascending and descending: among equals the lower expert id comes first.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.dropmap import DropMap
from trimoe.choose.protect import class_minimum, forced
from trimoe.choose.recipe import Floor, Recipe, class_matches, kept, resolve
from trimoe.choose.score import CRITERIA, Array, aggregate, normalise, outlier_cells, raw_scores, require_measured
from trimoe.errors import MapError, RecipeError, StatsError

EXTREME = 1e6
"""A wnorm above it is a numerical accident (protocol section 4). Cells beyond it that a recipe ranks all the same are
counted in the map."""


@dataclass(frozen=True)
class Scores:
    """What a recipe makes of statistics before anything is dropped."""

    aggregate: Array
    """[L, E]: the score that is ranked."""
    normalised: Array
    """[C, L, E] with C the classes used (one if pooled)."""
    weights: dict[str, float]
    """Weight of each class used."""
    imputed: int
    extreme: int
    """Cells of the classes used with a finite wnorm above the limit that were ranked as they are."""


def make_map(
    stats: ExpertStats,
    recipe: Recipe,
    *,
    base_stats: ExpertStats | None = None,
    keep: int | None = None,
    drop_fraction: float | None = None,
    floors: list[int] | None = None,
    force_keep: dict[int, list[int]] | None = None,
) -> DropMap:
    """The map of a recipe. `base_stats` holds the generic classes for the floor (default: those of `stats`); `keep` or
    `drop_fraction` overrides the recipe's budget; `floors` (one count per layer) overrides its floor. Layers without
    experts are not in the map, and nothing is ranked or rescaled over them.

    Raises `StatsError`, `RecipeError` or `MapError` when the three do not fit together.
    """
    base = base_stats if base_stats is not None else stats
    _same_model(stats, base)
    stats_hash, base_hash = stats.content_hash, base.content_hash
    numbers = stats.moe_layers
    stats, base = stats.of_layers(numbers), base.of_layers(numbers)
    _, layers, experts = stats.shape
    keep = budget(recipe, experts, keep, drop_fraction)
    scores = recipe_scores(stats, recipe)
    score, imputed = scores.aggregate, scores.imputed
    pooled = np.zeros((layers, experts))
    if recipe.floor is not None or floors is not None:
        pooled, more = pooled_scores(base, recipe)
        imputed += more
        if floors is None and recipe.floor is not None:
            floors = layer_floors(pooled, keep, clamp_of(recipe.floor, keep))
    if floors is not None and (len(floors) != layers or min(floors) < 0):
        raise RecipeError(
            "the floor does not give every layer a count",
            expected=f"{layers} counts",
            actual=f"{len(floors)} counts, lowest {min(floors, default=0)}",
        )
    strange = sorted(set(force_keep or {}) - set(numbers))
    if strange:
        raise MapError(
            "force-keep names a layer that does not exist or has no experts",
            expected=f"layers {_ranges(numbers)}",
            actual=str(strange),
        )
    protect = resolve(recipe.protect_top, experts)
    owners = _owners(base, recipe) if recipe.class_min else None
    minimum = {p: resolve(n, experts) for p, n in recipe.class_min.items()}
    drop: dict[int, tuple[int, ...]] = {}
    details: list[dict[str, Any]] = []
    unmet: dict[str, dict[str, int]] = {}
    for row, layer in enumerate(numbers):
        pinned = protected(score[row], pooled[row], protect, None if floors is None else floors[row], keep)
        gone = set([e for e in ascending(score[row]) if e not in pinned][: experts - keep])
        if owners is not None:
            own = {p: mask[row] for p, mask in owners.items()}
            gone, short = class_minimum(gone, pinned, score[row], own, minimum)
            if short:
                unmet[str(layer)] = short
        gone = forced(gone, score[row], (force_keep or {}).get(layer, []), layer)
        drop[layer] = tuple(sorted(gone))
        details.append(_detail(score[row], pinned, gone))
    metadata: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "resolved": {"keep": keep, "drop": experts - keep, "protect_top": protect, "class_min": minimum},
        "keep": keep,
        "classes": scores.weights,
        "imputed_cells": imputed,
        "extreme_cells_ranked": scores.extreme,
        "stats": stats_hash,
        "model": stats.metadata.get("model"),
        "layers": details,
    }
    if floors is not None:
        metadata |= {"floors": floors, "base_stats": base_hash}
    if force_keep:
        metadata["force_keep"] = {str(k): v for k, v in sorted(force_keep.items())}
    if unmet:
        metadata["class_min_unmet"] = unmet
    return DropMap(drop, experts, metadata)


def budget(recipe: Recipe, experts: int, keep: int | None = None, drop_fraction: float | None = None) -> int:
    """Experts to keep per layer: `keep`, or what dropping at least `drop_fraction` leaves, or the recipe's own."""
    if keep is not None and drop_fraction is not None:
        raise RecipeError("keep and drop_fraction contradict each other", expected="one of them")
    if drop_fraction is not None:
        if not 0 <= drop_fraction < 1:
            raise MapError("impossible share of experts to drop", expected="0 <= F < 1", actual=str(drop_fraction))
        # through the decimal form: 0.3 means three tenths, not the binary number next to it
        keep = kept(Fraction(repr(float(drop_fraction))), experts)
    if keep is None:
        keep = kept(recipe.drop, experts)
    if not 0 < keep <= experts:
        raise MapError("impossible number of experts to keep", expected=f"1..{experts}", actual=str(keep))
    return keep


def ascending(values: Array) -> list[int]:
    """Expert ids from the lowest value up, stable."""
    return [int(e) for e in np.argsort(values, kind="stable")]


def descending(values: Array) -> list[int]:
    """Expert ids from the highest value down, stable."""
    return [int(e) for e in np.argsort(-values, kind="stable")]


def recipe_scores(stats: ExpertStats, recipe: Recipe) -> Scores:
    """Score, normalise, aggregate. Raises `RecipeError` if no class has weight, `StatsError` for unusable values."""
    weights = {c: w for c in stats.classes if (w := recipe.weight_of(c)) is not None}
    if not any(weights.values()):
        raise RecipeError(
            f"recipe {recipe.name} gives no class of the statistics any weight",
            expected=", ".join(recipe.class_weights),
            actual=", ".join(stats.classes),
            remedy="calibrate with such classes or override --class-weights",
        )
    chosen = [i for i, c in enumerate(stats.classes) if c in weights]
    used = ExpertStats(tuple(weights), {name: array[chosen] for name, array in stats.fields.items()}, stats.metadata)
    needed = CRITERIA[recipe.criterion][0] if recipe.criterion in CRITERIA else ()
    repaired = _outliers(recipe) is not None and recipe.criterion != "random"
    extreme = 0
    if "wnorm" in used.fields and set(needed) - {"tc"} and not repaired:
        limit = recipe.outliers.limit if recipe.outliers else EXTREME
        extreme = int((outlier_cells(used, limit) & np.isfinite(used.fields["wnorm"])).sum())
    if needed:
        require_measured(used, recipe.criterion)
    if recipe.pooled and not repaired:
        used = ExpertStats(("all",), {n: a.sum(0, keepdims=True) for n, a in used.fields.items()}, used.metadata)
    scores, imputed = raw_scores(used, recipe.criterion, recipe.alpha, _outliers(recipe), recipe.seed)
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


def pooled_scores(base: ExpertStats, recipe: Recipe) -> tuple[Array, int]:
    """[L, E] and imputed cells: the v4 pooled score, the largest raw contribution over the floor's classes."""
    scores, imputed = raw_scores(_floor_classes(base, recipe), "contribution", recipe.alpha, _outliers(recipe))
    return scores.max(0), imputed


def protected(score: Array, pooled: Array, top: int, floor: int | None, keep: int) -> set[int]:
    """Experts of one layer that are not dropped: the top by score and the top `floor` by pooled score.

    When these are more than `keep`, the `keep` with the highest pooled score (without a floor: score) remain.
    """
    pinned = set(descending(score)[:top])
    if floor is not None:
        pinned |= set(descending(pooled)[:floor])
    if len(pinned) > keep:
        by = pooled if floor is not None else score
        pinned = set([e for e in descending(by) if e in pinned][:keep])
    return pinned


def clamp_of(floor: Floor, keep: int) -> tuple[int, int]:
    """The clamp as counts of `keep` experts."""
    low, high = (resolve(c, keep) for c in floor.clamp)
    if not 0 <= low <= high:
        raise RecipeError("impossible floor clamp", expected="LO <= HI", actual=f"{low}:{high}")
    return low, high


def layer_floors(pooled: Array, keep: int, clamp: tuple[int, int]) -> list[int]:
    """Experts to protect per layer: the mean of the layer's `keep` largest pooled scores, rescaled over layers to
    `clamp` (protocol section 5, "Floor map")."""
    return rescale([float(np.sort(row)[::-1][:keep].mean()) for row in pooled], clamp)


def rescale(values: list[float], clamp: tuple[int, int]) -> list[int]:
    """Linear rescaling of values to whole numbers in [lo, hi]; equal values all give lo."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return [round(clamp[0] + (clamp[1] - clamp[0]) * (v - low) / span) for v in values]


def _ranges(numbers: tuple[int, ...]) -> str:
    """0..29, or the numbers one by one where some are missing."""
    whole = numbers == tuple(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}..{numbers[-1]}" if whole else ", ".join(map(str, numbers))


def _outliers(recipe: Recipe) -> tuple[str, float] | None:
    """The rule that repairs cells, or None where every finite value is ranked as it is."""
    if recipe.outliers is None or recipe.outliers.mode == "keep":
        return None
    return recipe.outliers.mode, recipe.outliers.limit


def _floor_classes(base: ExpertStats, recipe: Recipe) -> ExpertStats:
    """The generic classes: those that the floor does not exclude."""
    exclude = (recipe.floor or Floor(clamp=(0, 0))).exclude
    wanted = [c for c in base.classes if not any(class_matches(c, p) for p in exclude)]
    if not wanted:
        raise StatsError(
            "the statistics for the floor have no generic class",
            expected=f"a class that does not match {', '.join(exclude)}",
            actual=", ".join(base.classes),
            remedy="give --base-stats with the generic classes",
        )
    keep = [base.classes.index(c) for c in wanted]
    return ExpertStats(tuple(wanted), {n: a[keep] for n, a in base.fields.items()}, base.metadata)


def _owners(base: ExpertStats, recipe: Recipe) -> dict[str, Array]:
    """For each class pattern of `class_min`: [L, E] bool, the experts whose best generic class it is by raw score
    (the argmax behind the pooled score)."""
    generic = _floor_classes(base, recipe)
    scores, _ = raw_scores(generic, "contribution", recipe.alpha, _outliers(recipe))
    best = scores.argmax(0)
    result = {}
    for pattern in recipe.class_min:
        wanted = [i for i, c in enumerate(generic.classes) if class_matches(c, pattern)]
        if not wanted:
            raise RecipeError(
                f"class_min names no generic class of the statistics: {pattern}", expected=", ".join(generic.classes)
            )
        result[pattern] = np.isin(best, wanted)
    return result


def _same_model(stats: ExpertStats, base: ExpertStats) -> None:
    if base.shape[1:] != stats.shape[1:]:
        raise StatsError(
            "base statistics are of another shape",
            expected=f"{stats.shape[1:]} (layers, experts)",
            actual=str(base.shape[1:]),
            remedy="use statistics of the same model",
        )
    one, other = stats.metadata.get("model"), base.metadata.get("model")
    if one and other and one != other:
        raise StatsError(
            "base statistics are of another model",
            expected=str(one)[:16],
            actual=str(other)[:16],
            remedy="use statistics of the same model",
        )


def _detail(score: Array, pinned: set[int], gone: set[int]) -> dict[str, Any]:
    """What one layer's cut looks like: a small gap says that the choice at the edge is arbitrary."""
    stay = [e for e in range(len(score)) if e not in gone]
    return {
        "protected": len(pinned),
        "highest_dropped": float(max(score[e] for e in gone)) if gone else None,
        "lowest_kept": float(min(score[e] for e in stay)),
    }
