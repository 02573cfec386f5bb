"""`trimoe map`: choose the experts to drop, and the group of commands that make drop maps."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts import map_combine as combine
from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import UsageError

FILE = click.Path(path_type=Path)


@click.command(name="make")
@click.argument("stats", type=FILE)
@click.option(
    "--recipe",
    "-r",
    default="v5-coder",
    show_default=True,
    metavar="NAME|FILE",
    help="A shipped recipe (random-N is seed N) or a .toml file.",
)
@click.option("--base-stats", type=FILE, help="Statistics with the generic classes, for the floor. Default: STATS.")
@click.option("--keep", type=click.IntRange(1), help="Experts to keep in every layer.")
@click.option(
    "--drop-fraction", type=click.FloatRange(0, 1, max_open=True), help="Share of the experts to drop, 0 to 1."
)
@click.option(
    "--width", type=click.IntRange(1), help="Make the kept experts this many neurons wide (statistics with --neurons)."
)
@click.option(
    "--neuron-group",
    type=click.IntRange(1),
    metavar="N",
    help="Keep neurons in groups of N, for example 32 or 256 for the blocks of GGUF types. Default: as stored.",
)
@click.option("--criterion", help="Score of an expert: contribution, wnorm, frequency, reap, ean or random.")
@click.option(
    "--positions",
    metavar="all|replies|KINDS",
    help="Sums over which positions: all, replies (and plain text), or of text, prompt, own, recorded with commas.",
)
@click.option("--alpha", type=float, help="Weight of wnorm in the contribution score.")
@click.option("--normalize", help="Within class and layer: rank, mean or none.")
@click.option("--aggregate", help="Across classes: max, sum, mean, lp4, softmax_t4, second, top3mean or geomean.")
@click.option(
    "--class-weights", metavar="C=W,...", help="Weights of classes or patterns; all others keep the recipe's weight."
)
@click.option(
    "--protect-top", metavar="N", help="Never drop the N best experts of a layer; a share such as 16/128 is scaled."
)
@click.option("--floor", metavar="LO:HI", help="Protect LO to HI experts per layer by pooled score, or `none`.")
@click.option("--floor-file", type=FILE, help="The floor of every layer, from a JSON file.")
@click.option("--floor-clamp", metavar="LO:HI", help="Rescale the floor, from a file or derived, to LO..HI.")
@click.option("--breadth-bonus", type=float, help="This times the mean over classes is added to the aggregate.")
@click.option("--class-min", metavar="C=N,...", help="Keep at least N experts whose best class is C.")
@click.option("--force-keep", type=FILE, help="File of LAYER:EXPERT lines: experts to keep whatever their score.")
@click.option(
    "--outliers",
    metavar="MODE:LIMIT",
    help="What to do with cells whose wnorm exceeds LIMIT: median, zero, drop, keep (rank as they are), or `none`.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of the random criterion.")
@click.option("-o", "--out", "--output", type=FILE, help="The map to write (JSON).")
@click.option("--dry-run", is_flag=True, help="Make the map and report it, but write nothing.")
@click.option(
    "--explain", "explained", metavar="LAYER:EXPERT", multiple=True, help="Explain why this expert is kept or dropped."
)
@click.option("--diff", type=FILE, help="Compare with another map.")
@json_option
def drop_map(
    stats: Path,
    recipe: str,
    floor_file: Path | None,
    out: Path | None,
    dry_run: bool,
    explained: tuple[str, ...],
    diff: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose the experts to drop from the statistics STATS.

    Every field of the recipe can be overridden; the map records the recipe as it was applied. The same statistics and
    options give the same bytes. STATS may also be a JSON[.gz] file in the reference layout.

    \b
    Examples:
      trimoe map stats.safetensors --recipe v5-coder -o map.json
      trimoe map stats.safetensors --recipe reap --drop-fraction 0.25 -o map.json
      trimoe map stats.safetensors --recipe reap --keep 96 --width 512 -o map.json
      trimoe map targeted.safetensors --base-stats generic.safetensors --outliers median:1e4 -o map.json
      trimoe map stats.safetensors --class-weights math=1,code=3 --floor none --dry-run --explain 0:17
    """
    from trimoe.calibrate.stats.reference import open_stats
    from trimoe.choose.choose import choose
    from trimoe.choose.dropmap import DropMap
    from trimoe.io.atomic import require_absent

    if out is None and not dry_run:
        raise UsageError("nowhere to write the map", expected="-o MAP", remedy="add -o MAP or --dry-run")
    if out is not None and not dry_run:
        require_absent(out)
    wanted = [_cell(text) for text in explained]
    given = {name: value for name, value in options.items() if value is not None}
    measured = open_stats(stats)
    made = choose(measured, recipe=recipe, floors=floor_file, **given)
    data: dict[str, Any] = {
        "map": str(out) if out is not None and not dry_run else None,
        "map_sha256": made.content_hash,
        "recipe": made.recipe.name,
        "keep": made.metadata["keep"],
        "num_experts": made.num_experts,
        "num_layers": len(made.drop),
        "width": None if made.narrow is None else made.narrow.kept,
        "width_before": None if made.narrow is None else made.narrow.width,
        "classes": made.metadata["classes"],
        "imputed_cells": made.metadata["imputed_cells"],
        "extreme_cells_ranked": made.metadata["extreme_cells_ranked"],
        "model_notes": measured.metadata.get("model_notes", []),
        "class_min_unmet": made.metadata.get("class_min_unmet", {}),
    }
    if wanted:
        data["explain"] = [made.explain(layer, expert) for layer, expert in wanted]
    if diff is not None:
        data["diff"] = made.difference(DropMap.load(diff))
    if out is not None and not dry_run:
        made.save(out)
    emit(data, _text(data), as_json)


def _cell(text: str) -> tuple[int, int]:
    layer, _, expert = text.partition(":")
    if not (layer.isdecimal() and expert.isdecimal()):
        raise UsageError(f"--explain: cannot read {text!r}", expected="LAYER:EXPERT", remedy="for example 0:17")
    return int(layer), int(expert)


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"{data['recipe']}: keep {data['keep']} of {data['num_experts']} experts in {data['num_layers']} layers; "
        f"classes {', '.join(f'{c}={w:g}' for c, w in data['classes'].items())}"
    ]
    if data["width"]:
        lines.append(f"experts become {data['width']} of {data['width_before']} neurons wide")
    if data["imputed_cells"]:
        lines.append(f"{data['imputed_cells']} outlier cells imputed")
    if data["extreme_cells_ranked"]:
        lines.append(
            f"warning: {data['extreme_cells_ranked']} cells with an implausibly large wnorm were ranked as they are; "
            "impute them with --outliers median:1e4"
        )
    lines += [f"warning: {note}" for note in data["model_notes"]]
    for layer, short in data["class_min_unmet"].items():
        lines.append(f"warning: layer {layer} keeps fewer experts than the class minimum: {short}")
    for e in data.get("explain", ()):
        fate = "dropped" if e["dropped"] else "kept"
        why = [n for n in ("rank", "floor") if e.get(f"protected_by_{n}")]
        swapped = f" by {e['reason']}" if e["reason"] in ("forced", "class minimum") else ""
        lines.append(
            f"expert {e['layer']}:{e['expert']} is {fate}{swapped}: "
            f"score {e['score']:.4g}, rank {e['rank']} of {e['of']}"
            + (f", protected by {' and '.join(why)}" if why else "")
            + f" (lowest kept {e['lowest_kept_score']:.4g})"
        )
        lines += [f"  {name}: {c['normalised']:.4g} x {c['weight']:g}" for name, c in e["classes"].items()]
    if "diff" in data:
        lines.append(f"{data['diff']['swaps']} swaps from the other map, in {len(data['diff']['layers'])} layers")
    lines.append(f"wrote {data['map']}" if data["map"] else "dry run: nothing written")
    return "\n".join(lines)


class Maps(click.Group):
    """A command group with a default command: `trimoe map STATS` means `trimoe map make STATS`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command."""
        return super().parse_args(ctx, self.completed(args))

    def completed(self, args: list[str]) -> list[str]:
        """The arguments, starting with the name of a command."""
        explicit = not args or args[0] in self.commands or args[0] in ("-h", "--help")
        return args if explicit else ["make", *args]


@click.group(name="map", cls=Maps)
def maps() -> None:
    """Choose the experts to drop, or combine drop maps.

    `trimoe map STATS` is short for `trimoe map make STATS`; see `trimoe map make --help` for its options.

    \b
    Examples:
      trimoe map stats.safetensors --recipe v5-coder -o map.json
      trimoe map combine code.json math.json --keep-union -o both.json
      trimoe map recorded pruned-twice --undo 1 -o before.json
    """


for command in (drop_map, *combine.COMMANDS):
    maps.add_command(command)

COMMANDS = [maps]
