"""The per-layer floor: how many experts of each layer are protected by their pooled score.

The pooled score of an expert is its largest raw contribution over the generic classes, the classes that the floor does
not exclude. Layers whose pooled scores are high get a high floor (section 5 of the protocol, "Floor map").
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.calibrate.stats.criteria import Array
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.positions import of_positions
from trimoe.choose.recipe import Floor, Recipe, class_matches, load_recipe, names, resolve
from trimoe.choose.score import outlier_rule, raw_scores
from trimoe.errors import RecipeError, StatsError
from trimoe.io.jsonfile import read_json


def pooled_scores(base: ExpertStats, recipe: Recipe) -> tuple[Array, int]:
    """[L, E] pooled scores of the base statistics, and the number of imputed cells. Raises `StatsError`."""
    scores, imputed = raw_scores(_generic(base, recipe), "contribution", recipe.alpha, outlier_rule(recipe))
    return scores.max(0), imputed


def clamp_of(floor: Floor, keep: int) -> tuple[int, int]:
    """The clamp as counts of `keep` experts. Raises `RecipeError` unless 0 <= low <= high."""
    low, high = (resolve(c, keep) for c in floor.clamp)
    if not 0 <= low <= high:
        raise RecipeError("impossible floor clamp", expected="LO <= HI", actual=f"{low}:{high}")
    return low, high


def layer_floors(pooled: Array, keep: int, clamp: tuple[int, int]) -> list[int]:
    """Experts to protect per layer: the mean of the layer's `keep` largest pooled scores, rescaled over the layers to
    `clamp`."""
    return rescale([float(np.sort(row)[::-1][:keep].mean()) for row in pooled], clamp)


def rescale(values: Sequence[float], clamp: tuple[int, int]) -> list[int]:
    """Linear rescaling of values to whole numbers in [low, high], halves to the even one; equal values all give low."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    scaled = [round(clamp[0] + (clamp[1] - clamp[0]) * (v - low) / span) for v in values]
    return [min(max(n, clamp[0]), clamp[1]) for n in scaled]


def class_owners(base: ExpertStats, recipe: Recipe) -> dict[str, Array]:
    """For each class pattern of `class_min`: [L, E] bool, the experts whose best generic class it matches.

    The best class is the one with the highest raw score, the argmax behind the pooled score. Raises `RecipeError` for a
    pattern that matches no generic class.
    """
    generic = _generic(base, recipe)
    scores, _ = raw_scores(generic, "contribution", recipe.alpha, outlier_rule(recipe))
    best = scores.argmax(0)
    result = {}
    for pattern in recipe.class_min:
        wanted = [i for i, c in enumerate(generic.classes) if class_matches(c, pattern)]
        if not wanted:
            raise RecipeError(
                f"class_min matches no generic class of the statistics: {pattern}",
                expected=", ".join(generic.classes),
                actual=pattern,
                remedy="correct the class name, or give --base-stats with such a class",
            )
        result[pattern] = np.isin(best, wanted)
    return result


_MEANS = re.compile(r"top\d+_mean_per_layer")


def read_floors(path: Path, clamp: tuple[int, int] | None = None) -> list[int]:
    """Counts per layer from {"floor_per_layer": {"0": 80, ...}} or the inner object alone; with `clamp` rescaled.

    The reference's files also hold the means that the counts were rounded from ("top98_mean_per_layer"). Those are what
    is rescaled: counts that were rounded once and rescaled would be rounded twice. Raises `RecipeError`.
    """
    data = read_json(path, "floor file", RecipeError)
    body = data.get("floor_per_layer", data) if isinstance(data, dict) else None
    floors = _by_layer(path, body)
    if any(type(f) is not int or f < 0 for f in floors):
        raise RecipeError(f"{path} has a floor that is not a count", expected="whole numbers from 0")
    if clamp is None:
        return [int(f) for f in floors]
    kept = [name for name in data if _MEANS.fullmatch(name)] if body is not data else []
    if len(kept) > 1:
        raise RecipeError(f"{path} has means of several counts", expected="one of them", actual=", ".join(sorted(kept)))
    means = _by_layer(path, data[kept[0]]) if kept else floors
    if len(means) != len(floors):
        raise RecipeError(
            f"{path}: {kept[0]} and floor_per_layer are of different models",
            expected=f"{len(floors)} layers",
            actual=str(len(means)),
        )
    return rescale([float(m) for m in means], clamp)


def _by_layer(path: Path, body: Any) -> list[float]:
    """The values of {"0": x, "1": y, ...} in order."""
    if not isinstance(body, dict) or not body or sorted(body) != sorted(str(i) for i in range(len(body))):
        raise RecipeError(f"{path} is not a floor file", expected='{"floor_per_layer": {"0": count, ...}}')
    values = [body[str(i)] for i in range(len(body))]
    if any(type(v) not in (int, float) or not math.isfinite(v) for v in values):
        raise RecipeError(f"{path} has a floor that is not a number", expected="a finite number for each layer")
    return values


def refusing_recipes(classes: Iterable[str]) -> list[str]:
    """Shipped recipes that refuse statistics with these classes alone: one class or another is missing to them."""
    present = list(classes)
    return [name for name in names() if _refuses(load_recipe(name), present)]


def _refuses(recipe: Recipe, classes: Sequence[str]) -> bool:
    generic = generic_classes(classes, recipe)
    weighted = any(recipe.weight_of(name) for name in classes)
    minimum = all(any(class_matches(name, pattern) for name in generic) for pattern in recipe.class_min)
    return not weighted or not minimum or (recipe.floor is not None and not generic)


def generic_classes(classes: Iterable[str], recipe: Recipe) -> list[str]:
    """The classes that the recipe's floor does not exclude."""
    exclude = (recipe.floor or Floor(clamp=(0, 0))).exclude
    return [c for c in classes if not any(class_matches(c, p) for p in exclude)]


def _generic(base: ExpertStats, recipe: Recipe) -> ExpertStats:
    wanted = generic_classes(base.classes, recipe)
    if not wanted:
        raise StatsError(
            "the statistics for the floor have no generic class",
            expected=f"a class that does not match {', '.join((recipe.floor or Floor(clamp=(0, 0))).exclude)}",
            actual=", ".join(base.classes),
            remedy="take --recipe reap, leave the floor out (--floor none), or give --base-stats with the generic "
            "classes (trimoe calibrate MODEL --set generic)",
        )
    keep = [base.classes.index(c) for c in wanted]
    return of_positions(base.of_classes(keep), recipe.positions)
