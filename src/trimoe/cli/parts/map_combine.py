"""`trimoe map combine`, `compose` and `recorded`: drop maps from other drop maps."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import UsageError

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("maps", type=FILE, nargs=-1, required=True)
@click.option("--keep-union", "how", flag_value="union", help="Keep the experts that any of the maps keeps.")
@click.option(
    "--keep-intersection", "how", flag_value="intersection", help="Keep only the experts that all of the maps keep."
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Experts to keep per layer; at least as many as any layer needs.",
)
@click.option("--stats", type=FILE, help="Statistics: fill up by score instead of by expert id.")
@click.option(
    "--recipe",
    default="v5-coder",
    show_default=True,
    metavar="NAME|FILE",
    help="With --stats: the recipe that computes the scores.",
)
@click.option("-o", "--out", "--output", type=FILE, required=True, help="The map to write (JSON).")
@json_option
def combine(
    maps: tuple[Path, ...], how: str | None, keep: int | None, stats: Path | None, recipe: str, out: Path, as_json: bool
) -> None:
    """Combine MAPS of one model: keep the experts that any, or only those that all of them keep.

    Every layer must keep equally many experts. The layer that needs the most decides, and the others are filled up:
    first with the experts that most of the maps keep, then with those of higher score (--stats) or lower id. The
    experts that were filled in are printed and recorded in the map.

    \b
    Examples:
      trimoe map combine code.json math.json --keep-union -o both.json
      trimoe map combine a.json b.json c.json --keep-intersection -o core.json
      trimoe map combine code.json math.json --keep-union --keep 96 --stats stats.safetensors -o both.json
    """
    from trimoe.choose.combine import combine as run
    from trimoe.choose.dropmap import DropMap
    from trimoe.io.atomic import require_absent

    if how is None or len(maps) < 2:
        raise UsageError(
            "combine needs at least two maps and a way to combine them",
            expected="two maps or more, and --keep-union or --keep-intersection",
            actual=f"{len(maps)} maps, {how or 'neither option'}",
            remedy="see trimoe map combine --help",
        )
    require_absent(out)
    scores = None
    if stats is not None:
        from trimoe.calibrate.stats.reference import open_stats
        from trimoe.choose.recipe import load_recipe
        from trimoe.choose.score import recipe_scores

        scores = recipe_scores(open_stats(stats), load_recipe(recipe)).aggregate
    made = run(
        [DropMap.load(file) for file in maps], "union" if how == "union" else "intersection", keep=keep, scores=scores
    )
    made.save(out)
    filled: dict[str, list[int]] = made.metadata["filled"]
    text = _summary(made.drop, made.num_experts, out)
    text += "".join(f"\nlayer {layer}: filled up with experts {ids}" for layer, ids in filled.items())
    emit(_data(made, out) | {"filled": filled}, text, as_json)


@click.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("-o", "--out", "--output", type=FILE, required=True, help="The map to write (JSON).")
@json_option
def compose(first: Path, second: Path, out: Path, as_json: bool) -> None:
    """Combine two successive cuts into one map; SECOND numbers the experts that FIRST keeps.

    Pruning the original with the result gives the same weights as pruning twice.

    \b
    Examples:
      trimoe map compose to-98.json to-64.json -o original-to-64.json
    """
    from trimoe.choose.combine import compose as run
    from trimoe.choose.dropmap import DropMap
    from trimoe.io.atomic import require_absent

    require_absent(out)
    made = run(DropMap.load(first), DropMap.load(second))
    made.save(out)
    emit(_data(made, out), _summary(made.drop, made.num_experts, out), as_json)


@click.command()
@click.argument("pruned", type=FILE)
@click.option(
    "--undo",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Leave out the last N cuts.",
)
@click.option("-o", "--out", "--output", type=FILE, required=True, help="The map to write (JSON).")
@json_option
def recorded(pruned: Path, undo: int, out: Path, as_json: bool) -> None:
    """Write the drop map of a pruned model relative to its original: all its cuts as one.

    PRUNED is the model's directory or its expert_drop_metadata.json. With --undo, the map of an earlier state: prune
    the original with it to restore that state (only the original has the dropped experts).

    \b
    Examples:
      trimoe map recorded pruned-twice -o now.json
      trimoe map recorded pruned-twice --undo 1 -o before.json
    """
    from trimoe.cut.history import original, read_record
    from trimoe.io.atomic import require_absent

    require_absent(out)
    made = original(read_record(pruned), undo)
    made.save(out)
    text = _summary(made.drop, made.num_experts, out)
    if not any(made.drop.values()):
        text += "\nall cuts are undone: the map drops nothing"
    emit(_data(made, out) | {"cuts": made.metadata["cuts"]}, text, as_json)


def _data(made: Any, out: Path) -> dict[str, Any]:
    return {
        "map": str(out),
        "map_sha256": made.content_hash,
        "num_experts": made.num_experts,
        "num_layers": len(made.drop),
        "dropped": max(map(len, made.drop.values())),
    }


def _summary(drop: dict[int, tuple[int, ...]], experts: int | None, out: Path) -> str:
    dropped = max(map(len, drop.values()))
    count = f"keeps {experts - dropped} of {experts}" if experts is not None else f"drops {dropped}"
    return f"{count} experts in {sum(map(bool, drop.values()))} layers; wrote {out}"


COMMANDS = [combine, compose, recorded]
