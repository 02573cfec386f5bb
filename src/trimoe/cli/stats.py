"""`trimoe stats`: look at, convert and merge statistics files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option

if TYPE_CHECKING:
    import numpy as np

    from trimoe.calibrate.stats.expert_stats import ExpertStats

    Array = np.ndarray[Any, np.dtype[Any]]

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
    help="What experts are compared by, as in `map --criterion`. Default: the first that was measured of "
    "contribution, reap, frequency.",
)
@click.option(
    "--class",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only classes of this name or pattern (generic_*); may be repeated.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Size of the sets of strongest experts that classes are compared by. Default: a quarter of the experts.",
)
@click.option(
    "--show",
    "shown",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Experts listed at either end of a layer.",
)
@click.option(
    "--min-tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="An expert with fewer tokens of a class is called thin.",
)
@click.option("--heatmap", type=FILE, help="Also draw the experts of every class: a new .html or .png file.")
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
    """What was measured and how it is spread: coverage, Gini, top and bottom experts, kinship of classes.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats show base.json.gz --json
      trimoe stats show stats.safetensors --by reap --class 'targeted_*' --heatmap experts.html
    """
    from trimoe.calibrate.stats.criteria import criterion_scores
    from trimoe.calibrate.stats.reference import open_stats
    from trimoe.calibrate.stats.summary import summarize
    from trimoe.errors import StatsError
    from trimoe.io.atomic import require_absent

    if heatmap:
        require_absent(heatmap)
    loaded = open_stats(file)
    if patterns:
        loaded = loaded.select(list(patterns))
    by, scores = criterion_scores(loaded, by)
    top = min(top or max(1, loaded.shape[2] // 4), loaded.shape[2])
    data = summarize(loaded, scores, by, top=top, show=shown, least=min_tokens)
    if heatmap:
        _draw(heatmap, file.name, data, loaded, scores)
    try:
        text = "\n".join(_text(data, heatmap))
    except (AttributeError, KeyError, TypeError) as exc:  # metadata is JSON of any form: never trusted
        raise StatsError(
            f"the metadata of {file} is damaged",
            expected="what `trimoe calibrate` writes",
            actual=f"{type(exc).__name__}: {exc}"[:200],
            remedy="make the file again",
        ) from exc
    emit({**data, "heatmap": str(heatmap) if heatmap else None}, text, as_json)


def _draw(path: Path, name: str, data: dict[str, Any], loaded: "ExpertStats", scores: "Array") -> None:
    from trimoe.report.heat import Panel, write_heatmap

    layers = data["moe_layers"]
    panels = [Panel(c, scores[i, layers].tolist()) for i, c in enumerate(loaded.classes)]
    facts = [
        f"{data['num_experts']} experts in {len(layers)} layers, by {data['by']}. Every layer is scaled to its "
        "strongest expert; grey cells are not finite.",
        f"Statistics {data['sha256'][:16]} of model {str(data['model'])[:16]}.",
    ]
    write_heatmap(path, f"Experts of {name}", facts, panels)


def _text(data: dict[str, Any], heatmap: Path | None) -> list[str]:
    lines = [f"{data['num_layers']} layers x {data['num_experts']} experts, fields {_named(data['fields'])}"]
    lines += [f"model {data['model'] or 'not recorded'}, content {data['sha256'][:16]}", ""]
    least = next(iter(data["classes"].values()))["least"]
    lines.append(f"{'class':<24} {'routed tokens':>15} {'cells':>7} {'unused':>7} {f'< {least} tokens':>13}")
    for name, row in data["classes"].items():
        if row["cells"] is None:
            lines.append(f"{name:<24} {'no token counts':>15}")
            continue
        tokens = f"{row['routed_tokens']:,.0f}"
        lines.append(f"{name:<24} {tokens:>15} {row['cells']:>7,d} {row['never_used']:>7,d} {row['thin']:>13,d}")
    lines += ["", f"experts by {data['by']}, every class counting the same"]
    lines.append(f"{'layer':>5}  {'Gini':>5}  {'strongest':<24}weakest")
    for row in data["layers"]:
        spread = "    -" if row["gini"] is None else f"{row['gini']:5.2f}"
        strong, weak = (" ".join(f"{e:d}" for e in row[end]) for end in ("top", "bottom"))
        unused = f"  ({row['never_used']} never used)" if row["never_used"] else ""
        lines.append(f"{row['layer']:>5}  {spread}  {strong:<24}{weak}{unused}")
    overlap = data["overlap"]
    if overlap["pairs"]:
        chance = f"(by chance {overlap['chance']:.2f})"
        lines += ["", f"classes compared: Jaccard of the {overlap['top']} strongest {chance}, Spearman of all"]
    for pair in sorted(overlap["pairs"], key=lambda p: -p["jaccard"]):
        rho = "-" if pair["spearman"] is None else f"{pair['spearman']:.2f}"
        lines.append(f"  {' and '.join(pair['classes']):<52} {pair['jaccard']:5.2f} {rho:>6}")
    return [*lines, *_notes(data), *([f"wrote {heatmap}"] if heatmap else [])]


def _named(fields: dict[str, Any]) -> str:
    """Field names; the bootstrap shards of a field are its parts, not fields to read about."""
    whole = [name for name in fields if "/" not in name]
    shards = len({name.partition("/")[0] for name in fields if "/" in name})
    return ", ".join(whole) + (f"; {shards} bootstrap shards" if shards else "")


def _notes(data: dict[str, Any]) -> list[str]:
    """What is wrong or worth knowing, one line each."""
    lines = []
    for name, row in data["fields"].items():
        note = [f"{row['nonfinite']} not finite"] if row["nonfinite"] else []
        note += ["zero everywhere: not measured"] if row["all_zero"] and "/" not in name else []
        note += [f"{row['extreme']} above 1e6 per window"] if row["extreme"] else []
        if note:
            lines.append(f"warning: {name}: {', '.join(note)}")
    metadata = data["metadata"]
    if left_out := metadata.get("left_out"):
        lines.append(f"left out: {', '.join(left_out)}")
    for bench, items in metadata.get("bench_items", {}).items():
        lines.append(f"holds {len(items)} items of {bench} on purpose")
    checks = metadata.get("leak_check")
    for report in checks if isinstance(checks, list) else [checks]:
        lines += leak_lines(report) if report else []
    return ["", *lines] if lines else []


def leak_lines(report: dict[str, Any]) -> list[str]:
    """A leak check for people: one line per bench that shares something with the set, and one for all the others."""
    lines, clean = [], []
    for name, row in report["benches"].items():
        common = len(row.get("boilerplate", ()))
        own = " of their own" if "boilerplate" in row else ""  # older statistics counted boilerplate too
        if row["overlapping"]:
            undeclared = len(row["undeclared"])
            why = f"{undeclared} not on purpose: {', '.join(row['undeclared'][:5])}" if undeclared else "all on purpose"
            lines.append(
                f"leak check: {len(row['overlapping'])} of {row['items']} items of {name} share "
                f"{report['gram']} words{own} in a row with the set, {why}"
            )
        else:
            clean.append(f"{name} ({row['items'] - row['unchecked']} of {row['items']} items checked)")
        if common:
            lines.append(
                f"leak check: {common} of {row['items']} items of {name} share only words that are common in "
                "the bench; not counted"
            )
    return lines + ([f"leak check: nothing that counts is shared with {', '.join(clean)}"] if clean else [])


@stats.command(name="import")
@click.argument("file", type=FILE)
@click.option("-o", "--out", required=True, type=FILE, help="The statistics file to write.")
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
@click.option("-o", "--out", required=True, type=FILE, help="The JSON to write; .gz compresses it.")
@json_option
def export(file: Path, out: Path, as_json: bool) -> None:
    """Write FILE in the reference JSON layout. Fields that layout does not have are left out and named.

    \b
    Examples:
      trimoe stats export stats.safetensors -o map.json.gz
    """
    import gzip

    from trimoe.calibrate.stats.reference import export_reference, left_out, open_stats
    from trimoe.io.atomic import publish_file

    loaded = open_stats(file)
    with publish_file(out) as temporary:
        # NaN and Infinity are no JSON, but the reference layout has them and they must not turn into numbers.
        body = json.dumps(export_reference(loaded)).encode()
        temporary.write_bytes(gzip.compress(body, mtime=0) if out.name.endswith(".gz") else body)
    left = left_out(loaded)
    whole = [name for name in left if "/" not in name]
    whole += ["the bootstrap shards"] if len(whole) < len(left) else []
    text = f"wrote {out}" + (f"\nleft out, not in the layout: {', '.join(whole)}" if left else "")
    emit({"file": str(out), "left_out": left}, text, as_json)


@stats.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=FILE, help="The statistics file to write.")
@json_option
def merge(files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Add up statistics of one model over disjoint documents; the result is that of one run over all of them.

    Runs may have classes of their own. A document that two runs measured in the same class is refused. Fields that
    cannot be merged (the norm of a mean vector) are left out and named.

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
        f"warning: {name} does not record its documents; that they are not in another file is not checked"
        for name in unknown
        if len(files) > 1
    ]
    emit(data, "\n".join(lines), as_json)


def _brief(loaded: "ExpertStats") -> dict[str, Any]:
    """What import and merge say of their result."""
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
