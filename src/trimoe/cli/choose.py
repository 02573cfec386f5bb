"""`trimoe map`: statistics and a recipe become a drop map; every field of the recipe can be overridden."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.common import emit, json_option


def _pairs(_ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, float] | None:
    """`a=1,b=2` as a mapping."""
    if value is None:
        return None
    try:
        return {k.strip(): float(v) for k, v in (part.split("=") for part in value.split(","))}
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is not of the form name=number,name=number", param=param) from exc


def _range(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`LO:HI` as two whole numbers."""
    if value is None:
        return None
    low, _, high = value.partition(":")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise click.BadParameter(f"{value!r} is not of the form LO:HI with LO <= HI", param=param)
    return int(low), int(high)


def _outliers(_ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """`MODE:LIMIT`."""
    if value is None:
        return None
    mode, _, limit = value.partition(":")
    try:
        return {"mode": mode, "limit": float(limit or "1e4")}
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is not of the form median:1e4", param=param) from exc


@click.command("map")
@click.argument("stats", type=click.Path(path_type=Path))
@click.option("--recipe", default="v5-coder", show_default=True, help="A shipped recipe, random-SEED, or a .toml file.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The map to write (JSON). Not needed with --dry-run."
)
@click.option("--base-stats", type=click.Path(path_type=Path), help="Statistics of the generic classes, for the floor.")
@click.option("--keep", type=click.IntRange(1), help="Experts to keep in each layer.")
@click.option("--drop-fraction", type=click.FloatRange(0, 1, max_open=True), help="Share of experts to drop instead.")
@click.option("--criterion", help="contribution, wnorm, frequency, reap, ean or random.")
@click.option("--alpha", type=float, help="Weight of wnorm in the contribution.")
@click.option("--normalize", type=click.Choice(["none", "mean", "rank"]), help="Per class and layer.")
@click.option("--aggregate", help="Over classes: max, sum, mean, lp4, softmax_t4, second, top3mean, geomean.")
@click.option("--class-weights", callback=_pairs, help="math=1,code=3; shell patterns and generic_NAME match too.")
@click.option("--protect-top", type=click.IntRange(0), help="Always keep this many of the best in each layer.")
@click.option("--floor", callback=_range, help="LO:HI experts to protect per layer by pooled score.")
@click.option("--floor-file", type=click.Path(path_type=Path), help='JSON with "floor_per_layer".')
@click.option("--floor-clamp", callback=_range, help="Rescale the floor file's counts to LO:HI.")
@click.option("--breadth-bonus", type=float, help="Weight of the unweighted mean over classes.")
@click.option("--class-min", callback=_pairs, help="code=10: keep at least so many of the class's own experts.")
@click.option("--force-keep", type=click.Path(path_type=Path), help='JSON {"layer": [experts]} kept in any case.')
@click.option("--outliers", callback=_outliers, help="Impute wild cells: median:1e4, zero:1e4 or drop:1e4.")
@click.option("--seed", type=int, help="Seed of criterion random.")
@click.option("--dry-run", is_flag=True, help="Compute and summarise; write nothing.")
@json_option
def map_command(
    stats: Path,
    recipe: str,
    out: Path | None,
    base_stats: Path | None,
    keep: int | None,
    drop_fraction: float | None,
    floor: tuple[int, int] | None,
    floor_file: Path | None,
    floor_clamp: tuple[int, int] | None,
    force_keep: Path | None,
    dry_run: bool,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Decide which experts to drop: STATS and a recipe become a drop map.

    \b
    Examples:
      trimoe map stats.safetensors --recipe v5-coder -o map.json
      trimoe map stats.safetensors --recipe reap --keep 98 -o reap.json
      trimoe map targeted.safetensors --base-stats base.safetensors --floor-file floor.json -o map.json
    """
    from trimoe.choose.select import make_map, rescale
    from trimoe.errors import UsageError
    from trimoe.measure.stats import ExpertStats

    if keep is not None and drop_fraction is not None:
        raise UsageError("--keep and --drop-fraction exclude each other", remedy="give one of them")
    if out is None and not dry_run:
        raise UsageError("no output given", expected="-o MAP", remedy="give -o, or --dry-run")
    if floor is not None and floor_file is not None:
        raise UsageError("--floor and --floor-file exclude each other", remedy="give one of them")
    if floor_clamp is not None and floor_file is None:
        raise UsageError("--floor-clamp rescales a --floor-file", remedy="give --floor-file, or use --floor LO:HI")
    measured = ExpertStats.load(stats)
    chosen = overridden(recipe, {**overrides, "floor": floor}, measured.classes)
    if drop_fraction is not None:
        keep = measured.shape[2] - int(drop_fraction * measured.shape[2])
    floors = _floors(floor_file) if floor_file else None
    if floors and floor_clamp:
        floors = rescale([float(f) for f in floors], floor_clamp)
    made = make_map(
        measured,
        chosen,
        base_stats=ExpertStats.load(base_stats) if base_stats else None,
        keep=keep,
        floors=floors,
        force_keep=_force(force_keep) if force_keep else None,
    )
    if out is not None and not dry_run:
        made.save(out)
    dropped = len(made.drop[0])
    summary = {
        "recipe": chosen.name,
        "layers": len(made.drop),
        "experts": made.num_experts,
        "keep": made.metadata["keep"],
        "drop_per_layer": dropped,
        "imputed_cells": made.metadata["imputed_cells"],
        "map_hash": made.content_hash,
        "classes": made.metadata["classes"],
        "out": str(out) if out and not dry_run else None,
    }
    text = (
        f"{chosen.name}: keep {made.metadata['keep']} of {made.num_experts} experts in each of {len(made.drop)} layers"
        f" ({dropped} dropped); {made.metadata['imputed_cells']} cells imputed"
        f"\n{'dry run: nothing written' if dry_run else f'written to {out}'}"
    )
    emit(summary, text, as_json)
    return 0


def overridden(name: str, options: dict[str, Any], classes: tuple[str, ...]) -> Any:
    """The recipe with the given options in place of its own fields, validated again."""
    from pydantic import ValidationError

    from trimoe.choose.recipe import Recipe, load_recipe
    from trimoe.errors import RecipeError

    recipe = load_recipe(name)
    changed = {k: v for k, v in options.items() if v is not None}
    if "floor" in changed:
        changed["floor"] = {"clamp": changed["floor"]}
    if "criterion" in changed and changed["criterion"] != recipe.criterion:
        changed["name"] = f"{recipe.name}+{changed['criterion']}"
    if "class_weights" in changed:
        # `code` alone means the class of that name or generic_code; unnamed classes are left out.
        changed["class_weights"] = {
            p: w
            for k, w in changed["class_weights"].items()
            for p in ((k,) if k in classes or "*" in k else (k, f"generic_{k}", f"targeted_{k}"))
        }
        changed["exclude"] = []
    if "class_min" in changed:
        changed["class_min"] = {k: int(v) for k, v in changed["class_min"].items()}
    try:
        return Recipe.model_validate({**recipe.model_dump(), **changed})
    except ValidationError as exc:
        first = exc.errors()[0]
        raise RecipeError(
            f"option for {'.'.join(map(str, first['loc']))}", expected="a possible value", actual=first["msg"]
        ) from exc


def _floors(path: Path) -> list[int]:
    from trimoe.artifact import read_json
    from trimoe.errors import RecipeError

    data = read_json(path, "floor file", RecipeError)
    try:
        table = data["floor_per_layer"]
        return [int(table[str(i)]) for i in range(len(table))]
    except (KeyError, TypeError, ValueError) as exc:
        raise RecipeError(
            f"{path} is not a floor file", expected='{"floor_per_layer": {"0": count, ...}}', actual=str(exc)
        ) from exc


def _force(path: Path) -> dict[int, list[int]]:
    from trimoe.choose.dropmap import DropMap

    return {layer: list(ids) for layer, ids in DropMap.load(path).drop.items()}


COMMANDS = [map_command]
