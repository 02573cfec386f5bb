"""Why an expert stays or goes, and how two maps differ."""

from typing import Any

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import Recipe, resolve
from trimoe.choose.select import descending, pooled_scores, recipe_scores
from trimoe.errors import MapError


def explain(
    stats: ExpertStats, recipe: Recipe, made: DropMap, layer: int, expert: int, base_stats: ExpertStats | None = None
) -> dict[str, Any]:
    """Score, rank (1 is best) and protections of one expert in the map `made` with these statistics and recipe."""
    _, layers, experts = stats.shape
    numbers = stats.moe_layers
    if not (layer in numbers and 0 <= expert < experts):
        dense = 0 <= layer < layers and layer not in numbers
        raise MapError(
            f"there is no expert {layer}:{expert}",
            expected=f"0..{layers - 1}:0..{experts - 1}",
            actual=f"layer {layer} has no experts" if dense else "",
        )
    row = numbers.index(layer)
    scores = recipe_scores(stats.of_layers(numbers), recipe)
    rank = descending(scores.aggregate[row]).index(expert) + 1
    names = list(scores.weights) if len(scores.normalised) == len(scores.weights) else ["all"]
    result: dict[str, Any] = {
        "layer": layer,
        "expert": expert,
        "dropped": expert in made.drop[layer],
        "score": float(scores.aggregate[row, expert]),
        "rank": rank,
        "of": experts,
        "protected_by_rank": rank <= resolve(recipe.protect_top, experts),
        "classes": {
            name: {"normalised": float(scores.normalised[i, row, expert]), "weight": scores.weights.get(name, 1.0)}
            for i, name in enumerate(names)
        },
        "lowest_kept_score": made.metadata["layers"][row]["lowest_kept"],
    }
    floors = made.metadata.get("floors")
    if floors:
        base = base_stats if base_stats is not None else stats
        pooled, _ = pooled_scores(base.of_layers(numbers), recipe)
        place = descending(pooled[row]).index(expert) + 1
        result |= {"pooled_rank": place, "floor": floors[row], "protected_by_floor": place <= floors[row]}
    return result


def difference(one: DropMap, other: DropMap) -> dict[str, Any]:
    """Per layer the ids that only one of two maps drops. Raises `MapError` when they cover different layers."""
    if one.drop.keys() != other.drop.keys():
        raise MapError(
            "the maps cover different layers", expected=str(sorted(one.drop)), actual=str(sorted(other.drop))
        )
    layers = {
        str(layer): {
            "only_first": sorted(set(ids) - set(other.drop[layer])),
            "only_second": sorted(set(other.drop[layer]) - set(ids)),
        }
        for layer, ids in one.drop.items()
    }
    changed = {layer: entry for layer, entry in layers.items() if any(entry.values())}
    return {
        "swaps": sum(max(len(e["only_first"]), len(e["only_second"])) for e in changed.values()),
        "layers": changed,
    }
