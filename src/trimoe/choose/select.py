"""Recipe and statistics -> drop map, in the order of section 5 of the protocol.

score -> normalise -> aggregate -> protect (top, floor) -> drop the lowest -> class minimum -> forced keeps.
Every sort is stable, ascending and descending: among equals the lower expert id comes first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from trimoe.calibrate.stats.criteria import Array
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.floor import clamp_of, class_owners, layer_floors, pooled_scores
from trimoe.choose.protect import class_minimum, forced, protected
from trimoe.choose.recipe import Recipe, kept, recipe_data, resolve
from trimoe.choose.score import ascending, descending, recipe_scores
from trimoe.choose.selection import Reason, Selection
from trimoe.errors import MapError, RecipeError, StatsError


def make_map(
    stats: ExpertStats,
    recipe: Recipe,
    *,
    base_stats: ExpertStats | None = None,
    keep: int | None = None,
    drop_fraction: float | None = None,
    floors: list[int] | None = None,
    force_keep: Mapping[int, list[int]] | None = None,
) -> Selection:
    """The selection of a recipe. `base_stats` holds the generic classes for the floor (default: those of `stats`);
    `keep` or `drop_fraction` overrides the recipe's budget; `floors` (one count per layer) overrides its floor. Layers
    without experts are not in the map, and nothing is ranked or rescaled over them.

    Raises `StatsError`, `RecipeError` or `MapError` when they do not fit together.
    """
    base = base_stats if base_stats is not None else stats
    _require_same_model(stats, base)
    numbers, num_layers, experts = stats.moe_layers, stats.shape[1], stats.shape[2]
    used, used_base = stats.of_layers(numbers), base.of_layers(numbers)
    keep, groups = budget(recipe, experts, keep, drop_fraction), _groups(stats, recipe)
    _require_equal_groups(groups, keep, experts)
    _require_budget_of(stats, recipe, keep)
    scores = recipe_scores(used, recipe)
    pooled, imputed = None, scores.imputed
    if recipe.floor is not None or floors is not None:
        pooled, more = pooled_scores(used_base, recipe)
        imputed += more
        if floors is None and recipe.floor is not None:
            floors = layer_floors(pooled, keep, clamp_of(recipe.floor, keep))
    _require_layers(numbers, floors, force_keep or {})
    owners = class_owners(used_base, recipe) if recipe.class_min else {}
    minimum = {p: resolve(n, experts) for p, n in recipe.class_min.items()}
    protect = resolve(recipe.protect_top, experts)
    cuts = {
        layer: _cut_layer(
            scores.aggregate[row],
            scores.aggregate[row] if pooled is None else pooled[row],
            {p: mask[row] for p, mask in owners.items()},
            (force_keep or {}).get(layer, []),
            budget=_Budget(keep, protect, None if floors is None else floors[row], minimum, groups),
            layer=layer,
        )
        for row, layer in enumerate(numbers)
    }
    metadata: dict[str, Any] = {
        "recipe": recipe_data(recipe),
        "resolved": {"keep": keep, "drop": experts - keep, "protect_top": protect, "class_min": minimum},
        "keep": keep,
        "classes": scores.weights,
        "imputed_cells": imputed,
        "extreme_cells_ranked": scores.extreme,
        "stats": stats.content_hash,
        "model": stats.metadata.get("model"),
        "layers": [cut.detail for cut in cuts.values()],
    }
    if floors is not None:
        metadata |= {"floors": floors, "base_stats": base.content_hash}
    if force_keep:
        metadata["force_keep"] = {str(k): v for k, v in sorted(force_keep.items())}
    if unmet := {str(layer): cut.unmet for layer, cut in cuts.items() if cut.unmet}:
        metadata["class_min_unmet"] = unmet
    return Selection(
        {layer: tuple(sorted(cut.gone)) for layer, cut in cuts.items()},
        experts,
        metadata,
        recipe=recipe,
        scores=scores,
        pooled=pooled,
        reasons={layer: cut.reasons for layer, cut in cuts.items()},
        num_layers=num_layers,
    )


def budget(recipe: Recipe, experts: int, keep: int | None = None, drop_fraction: float | None = None) -> int:
    """Experts to keep per layer: `keep`, or what dropping at least `drop_fraction` leaves, or the recipe's own."""
    if keep is not None and drop_fraction is not None:
        raise RecipeError("keep and drop_fraction contradict each other", expected="one of them")
    if drop_fraction is not None:
        if not 0 <= drop_fraction < 1:
            raise MapError("impossible share of experts to drop", expected="0 <= F < 1", actual=str(drop_fraction))
        # Through the decimal form: 0.3 means three tenths, not the binary number next to it.
        keep = kept(Fraction(repr(float(drop_fraction))), experts)
    if keep is None:
        keep = kept(recipe.drop, experts)
    if not 0 < keep <= experts:
        raise MapError("impossible number of experts to keep", expected=f"1..{experts}", actual=str(keep))
    return keep


@dataclass(frozen=True)
class _Budget:
    """What one layer keeps: experts in all, protected by score, protected by pooled score, and per class."""

    keep: int
    protect: int
    floor: int | None
    minimum: dict[str, int]
    groups: int = 1
    """Groups of equal size that lose the same number of experts each."""


@dataclass(frozen=True)
class _Cut:
    gone: set[int]
    reasons: tuple[Reason, ...]
    detail: dict[str, Any]
    unmet: dict[str, int]
    """Classes that keep fewer experts than their minimum, with the number they keep."""


def _lowest(score: Array, pinned: set[int], size: int, share: int) -> set[int]:
    """The lowest experts of each group of `size`, of which `share` are kept; protected ones only if a group holds more
    than it keeps."""
    found = set[int]()
    for first in range(0, len(score), size):
        order = [first + e for e in ascending(score[first : first + size])]
        found |= set([*(e for e in order if e not in pinned), *(e for e in order if e in pinned)][: size - share])
    return found


def _groups(stats: ExpertStats, recipe: Recipe) -> int:
    """Number of groups that lose equally many experts: those of the model's routing, by its statistics."""
    routing = stats.metadata.get("groups")
    count = routing.get("count") if isinstance(routing, dict) else None
    if type(count) is not int or count <= 1 or recipe.balance == "none":
        return 1
    if recipe.class_min:
        raise RecipeError(
            "class_min cannot be kept where experts are routed in groups",
            expected=f"equally many experts dropped in each of {count} groups",
            actual=f"class_min of {', '.join(recipe.class_min)}",
            remedy="leave class_min out",
        )
    return count


def _require_equal_groups(groups: int, keep: int, experts: int) -> None:
    if experts % groups or keep % groups:
        near = sorted({keep // groups * groups or groups, min(experts, -(-keep // groups) * groups)})
        raise MapError(
            f"{keep} of {experts} experts are not equally many in each of {groups} groups",
            expected=f"keep {' or '.join(map(str, near))}",
            actual=f"keep {keep}",
            remedy="choose a multiple of the number of groups: a cut is exact only if all lose the same number",
        )


def _cut_layer(
    score: Array, pooled: Array, owners: dict[str, Array], pins: list[int], *, budget: _Budget, layer: int
) -> _Cut:
    """Which experts of one layer are dropped, and why. `score` and `pooled` are [E], `owners[class]` bool [E]."""
    pinned = protected(score, pooled, budget.protect, budget.floor, budget.keep)
    size, unmet = len(score) // budget.groups, dict[str, int]()
    lowest = _lowest(score, pinned, size, budget.keep // budget.groups)
    if budget.groups == 1:
        swapped, unmet = class_minimum(lowest, pinned, score, owners, budget.minimum)
        gone = forced(swapped, score, pins, layer)
    else:
        swapped, gone = lowest, set[int]()
        for first in range(0, len(score), size):
            inside = range(first, first + size)
            own = {e - first for e in lowest if e in inside}
            stay = [e - first for e in pins if e in inside]
            gone |= {e + first for e in forced(own, score[first : first + size], stay, layer)}
    best = set(descending(score)[: budget.protect])

    def reason(expert: int) -> Reason:
        if (expert in swapped) != (expert in gone):
            return "forced"
        if (expert in lowest) != (expert in swapped):
            return "class minimum"
        if expert in pinned:
            return "protected" if expert in best else "floor"
        return "ranked"

    stay = [e for e in range(len(score)) if e not in gone]
    detail = {
        "protected": len(pinned),
        # A small gap between these two means that the choice at the edge is arbitrary.
        "highest_dropped": float(max(score[e] for e in gone)) if gone else None,
        "lowest_kept": float(min(score[e] for e in stay)),
    }
    return _Cut(gone, tuple(reason(e) for e in range(len(score))), detail, unmet)


def _require_layers(numbers: tuple[int, ...], floors: list[int] | None, force_keep: Mapping[int, list[int]]) -> None:
    """Floors and forced keeps must be of the layers that have experts."""
    if floors is not None and (len(floors) != len(numbers) or min(floors) < 0):
        raise RecipeError(
            "the floor does not give every layer a count",
            expected=f"{len(numbers)} counts, none negative",
            actual=f"{len(floors)} counts, lowest {min(floors, default=0)}",
            remedy="give one count per layer with experts",
        )
    unknown = sorted(set(force_keep) - set(numbers))
    if unknown:
        raise MapError(
            "force-keep names a layer that does not exist or has no experts",
            expected=f"layers {_ranges(numbers)}",
            actual=str(unknown),
        )


def _ranges(numbers: tuple[int, ...]) -> str:
    """0..29, or the numbers one by one where some are missing."""
    whole = numbers == tuple(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}..{numbers[-1]}" if whole else ", ".join(map(str, numbers))


def _require_budget_of(stats: ExpertStats, recipe: Recipe, keep: int) -> None:
    """Layers that were cut one after the other give the order for that one budget."""
    cut = stats.metadata.get("sequential")
    if recipe.criterion == "recon" and cut is not None and cut != keep:
        raise StatsError(
            f"the layers of these statistics were cut to {cut} experts while they were measured",
            expected=f"--keep {cut}",
            actual=f"--keep {keep}",
            remedy=f"keep {cut}, or calibrate again with --sequential {keep} or without it",
        )


def _require_same_model(stats: ExpertStats, base: ExpertStats) -> None:
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
