"""Recipe + statistics -> drop map. The order of the steps is that of protocol section 5.

score -> normalise -> aggregate -> protect (top, floor) -> drop the lowest -> class minimum -> forced keeps.
Every sort is stable, ascending and descending: among equals the lower expert id comes first.
"""

from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import Floor, Recipe, resolve
from trimoe.choose.score import Array, aggregate, normalise, raw_scores
from trimoe.errors import MapError, RecipeError, StatsError
from trimoe.measure.stats import ExpertStats


def make_map(
    stats: ExpertStats,
    recipe: Recipe,
    *,
    base_stats: ExpertStats | None = None,
    keep: int | None = None,
    floors: list[int] | None = None,
    force_keep: dict[int, list[int]] | None = None,
) -> DropMap:
    """The map of a recipe. `base_stats` holds the generic classes for the floor (default: those of `stats`);
    `keep` overrides the recipe's budget; `floors` (one count per layer) overrides its floor."""
    _, layers, experts = stats.shape
    keep = experts - resolve(recipe.drop, experts) if keep is None else keep
    if not 0 < keep <= experts:
        raise MapError("impossible number of experts to keep", expected=f"1..{experts}", actual=str(keep))
    score, imputed, classes = _aggregated(stats, recipe)
    base = base_stats if base_stats is not None else stats
    pooled = np.zeros((layers, experts))
    if recipe.floor is not None or floors is not None:
        if base.shape[1:] != (layers, experts):
            raise StatsError(
                "base statistics are of another shape", expected=str((layers, experts)), actual=str(base.shape[1:])
            )
        pooled, more = _pooled(base, recipe)
        imputed += more
        if floors is None and recipe.floor is not None:
            floors = layer_floors(pooled, keep, _clamp(recipe.floor, keep))
    if floors is not None and len(floors) != layers:
        raise RecipeError(
            "the floor does not name every layer once", expected=f"{layers} layers", actual=str(len(floors))
        )
    protect = resolve(recipe.protect_top, experts)
    owners = _owners(base, recipe) if recipe.class_min else None
    drop: dict[int, tuple[int, ...]] = {}
    for layer in range(layers):
        pinned = set(descending(score[layer])[:protect])
        if floors is not None:
            pinned |= set(descending(pooled[layer])[: floors[layer]])
        if len(pinned) > keep:
            by = pooled[layer] if floors is not None else score[layer]
            pinned = set([e for e in descending(by) if e in pinned][:keep])
        gone = set([e for e in ascending(score[layer]) if e not in pinned][: experts - keep])
        if owners is not None:
            gone = _class_minimum(gone, pinned, score[layer], owners, layer, recipe, experts)
        gone = _forced(gone, score[layer], (force_keep or {}).get(layer, []), experts, layer)
        drop[layer] = tuple(sorted(int(e) for e in gone))
    metadata: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "keep": keep,
        "classes": classes,
        "imputed_cells": imputed,
        "stats": stats.content_hash,
        "model": stats.metadata.get("model"),
    }
    if floors is not None:
        metadata |= {"floors": floors, "base_stats": base.content_hash}
    if force_keep:
        metadata["force_keep"] = {str(k): v for k, v in force_keep.items()}
    return DropMap(drop, experts, metadata)


def ascending(values: Array) -> list[int]:
    """Expert ids from the lowest value up, stable."""
    return [int(e) for e in np.argsort(values, kind="stable")]


def descending(values: Array) -> list[int]:
    """Expert ids from the highest value down, stable."""
    return [int(e) for e in np.argsort(-values, kind="stable")]


def _outliers(recipe: Recipe) -> tuple[str, float] | None:
    return (recipe.outliers.mode, recipe.outliers.limit) if recipe.outliers else None


def _aggregated(stats: ExpertStats, recipe: Recipe) -> tuple[Array, int, dict[str, float]]:
    """[L, E] aggregate score, imputed cells, and the weight each used class had."""
    weights = {c: w for c in stats.classes if (w := recipe.weight_of(c)) is not None}
    if not weights or not any(weights.values()):
        raise RecipeError(
            f"recipe {recipe.name} gives no class of the statistics any weight",
            expected=", ".join(recipe.class_weights),
            actual=", ".join(stats.classes),
            remedy="calibrate with such classes or override --class-weights",
        )
    used = stats.select(list(weights))
    if recipe.pooled:
        if recipe.outliers is not None:
            scores, imputed = raw_scores(used, recipe.criterion, recipe.alpha, _outliers(recipe), recipe.seed)
            return scores.sum(0), imputed, weights
        used = ExpertStats(("all",), {n: a.sum(0, keepdims=True) for n, a in used.fields.items()}, used.metadata)
    scores, imputed = raw_scores(used, recipe.criterion, recipe.alpha, _outliers(recipe), recipe.seed)
    vector = np.ones(len(scores)) if len(scores) == 1 else np.array(list(weights.values()))
    return (
        aggregate(normalise(scores, recipe.normalize), vector, recipe.aggregate, recipe.breadth_bonus),
        imputed,
        weights,
    )


def _pooled(base: ExpertStats, recipe: Recipe) -> tuple[Array, int]:
    """[L, E]: the v4 pooled score, the largest raw score over the floor's classes."""
    exclude = (recipe.floor or Floor(clamp=(0, 0))).exclude
    chosen = base.select([c for c in base.classes if not any(fnmatchcase(c, p) for p in exclude)])
    scores, imputed = raw_scores(chosen, "contribution", recipe.alpha, _outliers(recipe))
    return scores.max(0), imputed


def _clamp(floor: Floor, keep: int) -> tuple[int, int]:
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


def _owners(base: ExpertStats, recipe: Recipe) -> dict[str, Array]:
    """For each class pattern of `class_min`: [L, E] bool, the experts whose best class it is by raw score
    (the argmax behind the pooled score of `_pooled`)."""
    scores, _ = raw_scores(base, "contribution", recipe.alpha, _outliers(recipe))
    best = scores.argmax(0)
    result = {}
    for pattern in recipe.class_min:
        wanted = [i for i, c in enumerate(base.classes) if fnmatchcase(c, pattern) or c == f"generic_{pattern}"]
        if not wanted:
            raise RecipeError(
                f"class_min names no class of the statistics: {pattern}", expected=", ".join(base.classes)
            )
        result[pattern] = np.isin(best, wanted)
    return result


def _class_minimum(
    gone: set[int], pinned: set[int], score: Array, owners: dict[str, Array], layer: int, recipe: Recipe, experts: int
) -> set[int]:
    """Swap until each class keeps its minimum: its best dropped expert in, the lowest unpinned one out that does not
    bring another class below its own minimum."""
    gone = set(gone)
    minimum = {p: resolve(n, experts) for p, n in recipe.class_min.items()}

    def kept(pattern: str) -> int:
        return sum(1 for e in range(experts) if owners[pattern][layer][e] and e not in gone)

    def spare(expert: int) -> bool:
        return all(not owners[p][layer][expert] or kept(p) > n for p, n in minimum.items())

    for pattern, least in minimum.items():
        while kept(pattern) < least:
            back = [e for e in descending(score) if e in gone and owners[pattern][layer][e]]
            out = [e for e in ascending(score) if e not in gone and e not in pinned and spare(e)]
            out = [e for e in out if not owners[pattern][layer][e]]
            if not back or not out:
                break
            gone = (gone - {back[0]}) | {out[0]}
    return gone


def _forced(gone: set[int], score: Array, forced: list[int], experts: int, layer: int) -> set[int]:
    """The final override: each forced expert that was dropped takes the place of the lowest kept, unforced one."""
    if any(not 0 <= e < experts for e in forced):
        raise MapError(
            f"layer {layer}: force-keep names an expert that does not exist",
            expected=f"0..{experts - 1}",
            actual=str(forced),
        )
    gone = set(gone)
    for expert in forced:
        if expert in gone:
            out = [e for e in ascending(score) if e not in gone and e not in forced]
            if not out:
                raise MapError(f"layer {layer}: more experts are forced than kept", actual=str(len(forced)))
            gone = (gone - {expert}) | {out[0]}
    return gone
