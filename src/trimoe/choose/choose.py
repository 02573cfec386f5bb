"""`choose`: statistics and a recipe become a drop map. The public function behind `trimoe map`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import COUNT
from trimoe.calibrate.stats.reference import open_stats
from trimoe.choose.floor import clamp_of, read_floors, rescale
from trimoe.choose.narrow import narrowed
from trimoe.choose.override import checked_clamp, override
from trimoe.choose.protect import read_force_keep
from trimoe.choose.recipe import Recipe, load_recipe
from trimoe.choose.select import budget, make_map
from trimoe.choose.selection import Selection
from trimoe.errors import MapError, UsageError

Layers = Mapping[int, Sequence[int]]


def choose(
    stats: ExpertStats | Path | str,
    *,
    recipe: Recipe | Path | str = "v5-coder",
    keep: int | None = None,
    drop_fraction: float | None = None,
    base_stats: ExpertStats | Path | str | None = None,
    floors: Sequence[int] | Path | str | None = None,
    floor_clamp: Any = None,
    force_keep: Layers | Path | str | None = None,
    width: int | None = None,
    neuron_group: int | None = None,
    **fields: Any,
) -> Selection:
    """Choose the experts to drop.

    `stats` is the result of `calibrate` or its file, or a JSON[.gz] file in the reference layout. `recipe` is a shipped
    name (`random-N` is seed N), a .toml file or a `Recipe`; `fields` override its fields one by one, for example
    `alpha=1.5`, `class_weights={"code": 3}`, `floor=(75, 95)`, `outliers=("median", 1e4)`. `keep` experts per layer, or
    `drop_fraction` of them to drop, replace the recipe's budget. `base_stats` holds the generic classes for the floor
    (default: `stats`). `floors` gives the floor of every layer, as counts or as a JSON file; `floor_clamp` (low, high)
    rescales it. `force_keep` lists experts per layer that stay whatever their score, or is a file of LAYER:EXPERT
    lines. `width` makes the kept experts narrower: each keeps its best `width` neurons, in groups of `neuron_group`.

    The result is a `DropMap` that can also explain each decision; the same arguments give the same map. Raises
    `UsageError`, `StatsError`, `RecipeError`, `MapError` or `BadInput`.

    >>> drop = trimoe.choose(stats, keep=24)
    >>> drop
    Selection(4 layers, drops 8 of 32 experts)
    >>> drop.explain(0, drop.drop[0][0])["reason"]
    'ranked'
    """
    _refuse_contradictions(keep, drop_fraction, floors, floor_clamp, fields)
    measured = open_stats(stats)
    base = None if base_stats is None else open_stats(base_stats)
    if floor_clamp is not None and floors is None:
        fields["floor"] = floor_clamp
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    applied = override(loaded, measured.classes, **fields)
    number = budget(applied, measured.shape[2], keep, drop_fraction)
    _require_top_k(measured, number)
    counts = None if floors is None else _floor_counts(floors, floor_clamp, number)
    pins = read_force_keep(Path(force_keep)) if isinstance(force_keep, str | Path) else force_keep
    made = make_map(
        measured,
        applied,
        base_stats=base,
        keep=number,
        floors=counts,
        force_keep=None if pins is None else {int(layer): list(ids) for layer, ids in pins.items()},
    )
    return made if width is None else narrowed(made, measured, width, neuron_group)


def _refuse_contradictions(
    keep: int | None, drop_fraction: float | None, floors: Any, floor_clamp: Any, fields: dict[str, Any]
) -> None:
    if keep is not None and drop_fraction is not None:
        raise UsageError(
            "keep and drop_fraction contradict each other",
            expected="one of them",
            actual=f"keep {keep}, drop_fraction {drop_fraction}",
            remedy="leave one out",
        )
    if "floor" in fields and (floors is not None or floor_clamp is not None):
        raise UsageError(
            f"floor contradicts {'floors' if floors is not None else 'floor_clamp'}",
            expected="floor alone, or the floors of a file with or without a clamp",
            actual=f"floor {fields['floor']}",
            remedy="leave one out",
        )


def _require_top_k(stats: ExpertStats, keep: int) -> None:
    """Refuse what `prune` would refuse later: a router cannot choose more experts than there are.

    Statistics do not name the model's top-k; it is the routed tokens over all experts of a layer per token of a class.
    """
    tokens = stats.metadata.get("tokens")
    if not isinstance(tokens, dict) or COUNT not in stats.fields:
        return  # imported statistics need not say how many tokens a class has; `prune` checks
    routed = stats.field(COUNT).sum(2).max(1)
    shares = [float(sent) / tokens[name] for name, sent in zip(stats.classes, routed, strict=True) if tokens.get(name)]
    top_k = round(max(shares, default=0.0))
    if keep < top_k:
        raise MapError(
            f"{keep} experts per layer are fewer than the router chooses for each token",
            expected=f"at least {top_k} kept",
            actual=f"{keep} of {stats.shape[2]}",
            remedy=f"keep {top_k} or more",
        )


def _floor_counts(floors: Sequence[int] | Path | str, clamp: Any, keep: int) -> list[int]:
    limits = None if clamp is None else clamp_of(checked_clamp(clamp, "floor_clamp"), keep)
    if isinstance(floors, str | Path):
        return read_floors(Path(floors), limits)
    return [int(f) for f in floors] if limits is None else rescale([float(f) for f in floors], limits)
