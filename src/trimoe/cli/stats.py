"""`trimoe stats`: show, convert and merge statistics files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.cli.parts.stats_text import summary_lines

if TYPE_CHECKING:
    from trimoe.calibrate.stats.expert_stats import ExpertStats

FILE = click.Path(path_type=Path)


@click.group()
def stats() -> None:
    """Show, import, export and merge expert statistics.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats import base.json.gz -o base.safetensors
    """


@stats.command()
@click.argument("file", type=FILE)
@click.option(
    "--by",
    metavar="CRITERION",
    help="Criterion by which experts are compared, as in `map --criterion`. Default: the first that was measured of "
    "contribution, reap, frequency.",
)
@click.option(
    "--class",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only classes of this name or pattern (generic_*). Repeatable.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Compare classes by their N strongest experts. Default: a quarter of the experts.",
)
@click.option(
    "--show",
    "shown",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Strongest and weakest experts to list per layer.",
)
@click.option(
    "--min-tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Count experts with fewer tokens of a class as thinly covered.",
)
@click.option("--heatmap", type=FILE, help="Also draw a heat map of every class: a new .html or .png file.")
@json_option
def show(
    file: Path,
    by: str | None,
    patterns: tuple[str, ...],
    top: int | None,
    shown: int,
    min_tokens: int,
    heatmap: Path | None,
    as_json: bool,
) -> None:
    """Summarize statistics: coverage, Gini coefficients, strongest and weakest experts, similarity of classes.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats show base.json.gz --json
      trimoe stats show stats.safetensors --by reap --class 'targeted_*' --heatmap experts.html
    """
    from trimoe.calibrate.stats.reference import open_stats
    from trimoe.calibrate.stats.summary import summarize
    from trimoe.errors import StatsError
    from trimoe.io.atomic import require_absent

    if heatmap:
        require_absent(heatmap)
    loaded = open_stats(file)
    if patterns:
        loaded = loaded.select(list(patterns))
    data = summarize(loaded, by, top=top, show=shown, least=min_tokens)
    if heatmap:
        _draw(heatmap, file.name, data, loaded)
    try:
        text = "\n".join(summary_lines(data, heatmap))
    except (AttributeError, KeyError, TypeError) as exc:  # metadata is arbitrary JSON
        raise StatsError(
            f"the metadata of {file} is damaged",
            expected="what `trimoe calibrate` writes",
            actual=f"{type(exc).__name__}: {exc}"[:200],
            remedy="make the file again with trimoe calibrate",
        ) from exc
    emit({**data, "heatmap": str(heatmap) if heatmap else None}, text, as_json)


def _draw(path: Path, name: str, data: dict[str, Any], loaded: "ExpertStats") -> None:
    from trimoe.calibrate.stats.criteria import criterion_scores
    from trimoe.report.heat import Panel, write_heatmap

    _, scores = criterion_scores(loaded, data["by"])
    layers = data["moe_layers"]
    panels = [Panel(c, scores[i, layers].tolist()) for i, c in enumerate(loaded.classes)]
    facts = [
        f"{data['num_experts']} experts in {len(layers)} layers, by {data['by']}. Each layer is scaled to its "
        "strongest expert; grey cells are not finite.",
        f"Statistics {data['sha256'][:16]} of model {str(data['model'])[:16]}.",
    ]
    write_heatmap(path, f"Experts of {name}", facts, panels)


@stats.command(name="import")
@click.argument("file", type=FILE)
@click.option("-o", "--out", "--output", required=True, type=FILE, help="The statistics file to write.")
@json_option
def import_(file: Path, out: Path, as_json: bool) -> None:
    """Read FILE in the reference JSON layout, plain or gzipped.

    \b
    Examples:
      trimoe stats import base.json.gz -o base.safetensors
    """
    from trimoe.calibrate.stats.reference import import_reference
    from trimoe.io.atomic import require_absent

    require_absent(out)
    loaded = import_reference(file)
    loaded.save(out)
    data = _brief(loaded)
    text = f"{len(loaded.classes)} classes, {data['num_layers']} layers x {data['num_experts']} experts; wrote {out}"
    text += f"\nleft out: {', '.join(data['left_out'])}" if data["left_out"] else ""
    text += f"\nwarning: {data['nonfinite']} values are not finite" if data["nonfinite"] else ""
    emit({"stats": str(out), **data}, text, as_json)


@stats.command()
@click.argument("file", type=FILE)
@click.option("-o", "--out", "--output", required=True, type=FILE, help="The JSON to write; .gz compresses it.")
@json_option
def export(file: Path, out: Path, as_json: bool) -> None:
    """Write FILE in the reference JSON layout. Fields that the layout does not have are left out and listed.

    \b
    Examples:
      trimoe stats export stats.safetensors -o map.json.gz
    """
    from trimoe.calibrate.stats.reference import left_out, open_stats, save_reference

    loaded = open_stats(file)
    save_reference(loaded, out)
    left = left_out(loaded)
    whole = [name for name in left if "/" not in name]
    whole += ["the bootstrap shards"] if len(whole) < len(left) else []
    text = f"wrote {out}" + (f"\nleft out, not in the layout: {', '.join(whole)}" if left else "")
    emit({"file": str(out), "left_out": left}, text, as_json)


@stats.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", "--output", required=True, type=FILE, help="The statistics file to write.")
@json_option
def merge(files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Add up statistics of one model over disjoint documents; the result equals a single run over all of them.

    Runs may have different classes. A document that two runs measured in the same class is refused. Fields that cannot
    be merged (the norm of a mean vector) are left out and listed.

    \b
    Examples:
      trimoe stats merge monday.safetensors tuesday.safetensors -o both.safetensors
    """
    from trimoe.calibrate.stats.merge import merge as add
    from trimoe.calibrate.stats.reference import open_stats
    from trimoe.io.atomic import require_absent

    require_absent(out)
    parts = [open_stats(file) for file in files]
    merged = add(parts)
    merged.save(out)
    unknown = [str(file) for file, part in zip(files, parts, strict=True) if "document_hashes" not in part.metadata]
    data = {"stats": str(out), **_brief(merged), "documents_unknown": unknown}
    lines = [f"{len(files)} files merged; wrote {out}"]
    lines += [f"left out, cannot be merged: {', '.join(data['left_out'])}"] if data["left_out"] else []
    lines += [
        f"warning: {name} does not record its documents, so overlap with other files is not checked"
        for name in unknown
        if len(files) > 1
    ]
    emit(data, "\n".join(lines), as_json)


def _brief(loaded: "ExpertStats") -> dict[str, Any]:
    """The result of import and merge as JSON data."""
    import numpy as np

    broken = sum(int((~np.isfinite(array)).sum()) for array in (*loaded.fields.values(), *loaded.wide.values()))
    return {
        "classes": list(loaded.classes),
        "num_layers": loaded.shape[1],
        "num_experts": loaded.shape[2],
        "fields": sorted({*loaded.fields, *loaded.wide}),
        "sha256": loaded.content_hash,
        "nonfinite": broken,
        "left_out": loaded.metadata.get("left_out", []),
    }


COMMANDS = [stats]
