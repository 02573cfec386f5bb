"""`trimoe stats show | import | export | merge`."""

import json
from pathlib import Path

import click

from trimoe.cli.common import emit, json_option

_STATS = click.Path(path_type=Path)


@click.group()
def stats() -> None:
    """Look at expert statistics, and move them in and out of the reference layout.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats import expert_neuron.json.gz -o stats.safetensors
    """


@stats.command()
@click.argument("path", type=_STATS)
@json_option
def show(path: Path, as_json: bool) -> int:
    """Summarise a statistics file: classes, tokens, and how unevenly the layers use their experts.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats show stats.safetensors --json
    """
    from trimoe.measure.stats import ExpertStats, gini

    loaded = ExpertStats.load(path)
    _, layers, experts = loaded.shape
    tokens = loaded.field("tc").sum(0)
    per_class = {c: int(loaded.field("tc")[i].sum()) for i, c in enumerate(loaded.classes)}
    rows = [
        {
            "layer": i,
            "gini": round(gini(tokens[i]), 4),
            "idle": int((tokens[i] == 0).sum()),
            "top": [int(e) for e in (-tokens[i]).argsort(kind="stable")[:5]],
            "bottom": [int(e) for e in tokens[i].argsort(kind="stable")[:5]],
        }
        for i in range(layers)
    ]
    lines = [
        f"{len(loaded.classes)} classes, {layers} layers, {experts} experts; fields {', '.join(sorted(loaded.fields))}"
    ]
    lines += [f"  {name}: {count:,} routed tokens" for name, count in per_class.items()]
    lines += ["layer  gini   idle  most used / least used"]
    lines += [f"{r['layer']:5d}  {r['gini']:.3f}  {r['idle']:4d}  {r['top']} / {r['bottom']}" for r in rows]
    emit(
        {"classes": per_class, "layers": rows, "experts": experts, "metadata": loaded.metadata},
        "\n".join(lines),
        as_json,
    )
    return 0


@stats.command("import")
@click.argument("path", type=_STATS)
@click.option("-o", "--out", type=_STATS, required=True, help="The statistics file to write.")
@json_option
def import_command(path: Path, out: Path, as_json: bool) -> int:
    """Read the reference JSON layout (.json or .json.gz).

    \b
    Examples:
      trimoe stats import expert_neuron.json.gz -o stats.safetensors
    """
    from trimoe.measure.stats import import_reference

    loaded = import_reference(path)
    loaded.save(out)
    emit(
        {"out": str(out), "classes": list(loaded.classes), "shape": list(loaded.shape)},
        f"{len(loaded.classes)} classes, {loaded.shape[1]} layers, {loaded.shape[2]} experts written to {out}",
        as_json,
    )
    return 0


@stats.command("export")
@click.argument("path", type=_STATS)
@click.option("-o", "--out", type=_STATS, required=True, help="The JSON file to write.")
@json_option
def export_command(path: Path, out: Path, as_json: bool) -> int:
    """Write the reference JSON layout.

    \b
    Examples:
      trimoe stats export stats.safetensors -o expert_neuron.json
    """
    from trimoe.artifact import publish_file
    from trimoe.measure.stats import ExpertStats, export_reference

    data = export_reference(ExpertStats.load(path))
    with publish_file(out) as temporary:
        temporary.write_text(json.dumps(data))
    emit({"out": str(out)}, f"written to {out}", as_json)
    return 0


@stats.command("merge")
@click.argument("paths", type=_STATS, nargs=-1, required=True)
@click.option("-o", "--out", type=_STATS, required=True, help="The merged file to write.")
@json_option
def merge_command(paths: tuple[Path, ...], out: Path, as_json: bool) -> int:
    """Add up runs of one model over disjoint documents.

    \b
    Examples:
      trimoe stats merge monday.safetensors tuesday.safetensors -o both.safetensors
    """
    from trimoe.measure.stats import ExpertStats, merge

    merged = merge([ExpertStats.load(p) for p in paths])
    merged.save(out)
    emit({"out": str(out), "merged": len(paths)}, f"{len(paths)} files merged into {out}", as_json)
    return 0


COMMANDS = [stats]
