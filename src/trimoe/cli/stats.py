"""`trimoe stats`: look at, convert and merge statistics files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.common import emit, json_option

if TYPE_CHECKING:
    from trimoe.measure.stats import ExpertStats

FILE = click.Path(path_type=Path)


def open_stats(path: Path) -> "ExpertStats":
    """A statistics file, or reference JSON by its name (.json, .json.gz)."""
    from trimoe.measure.reference import import_reference
    from trimoe.measure.stats import ExpertStats

    return import_reference(path) if path.name.endswith((".json", ".json.gz")) else ExpertStats.load(path)


@click.group()
def stats() -> None:
    """Look at, import, export and merge expert statistics.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats import base.json.gz -o base.safetensors
    """


@stats.command()
@click.argument("file", type=FILE)
@json_option
def show(file: Path, as_json: bool) -> None:
    """Classes, fields, how much was measured, and what is wrong with it.

    \b
    Examples:
      trimoe stats show stats.safetensors
      trimoe stats show base.json.gz --json
    """
    data = summary(open_stats(file))
    lines = [f"{data['num_layers']} layers x {data['num_experts']} experts, fields {', '.join(data['fields'])}"]
    lines += [f"model {data['model'] or 'not recorded'}, content {data['sha256'][:16]}"]
    for name, row in data["classes"].items():
        lines.append(f"  {name:<24} {row['routed_tokens']:>14,.0f} routed tokens, {row['never_used']} cells never used")
    for name, row in data["fields"].items():
        note = [f"{row['nonfinite']} not finite"] if row["nonfinite"] else []
        note += ["zero everywhere: not measured"] if row["all_zero"] else []
        note += [f"{row['extreme']} above 1e6"] if row["extreme"] else []
        if note:
            lines.append(f"warning: {name}: {', '.join(note)}")
    emit(data, "\n".join(lines), as_json)


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
    from trimoe.artifact import require_absent
    from trimoe.measure.reference import import_reference

    require_absent(out)
    loaded = import_reference(file)
    loaded.save(out)
    lost = loaded.metadata.get("left_out", [])
    data = {"stats": str(out), **summary(loaded), "left_out": lost}
    broken = sum(row["nonfinite"] for row in data["fields"].values())
    text = f"{len(loaded.classes)} classes, {data['num_layers']} layers x {data['num_experts']} experts; wrote {out}"
    text += f"\nleft out: {', '.join(lost)}" if lost else ""
    emit(data, text + (f"\nwarning: {broken} values are not finite" if broken else ""), as_json)


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

    from trimoe.artifact import publish_file
    from trimoe.measure.reference import export_reference, left_out

    loaded = open_stats(file)
    with publish_file(out) as temporary:
        # NaN and Infinity are no JSON, but the reference layout has them and they must not turn into numbers.
        body = json.dumps(export_reference(loaded)).encode()
        temporary.write_bytes(gzip.compress(body, mtime=0) if out.name.endswith(".gz") else body)
    left = left_out(loaded)
    text = f"wrote {out}" + (f"\nleft out, not in the layout: {', '.join(left)}" if left else "")
    emit({"file": str(out), "left_out": left}, text, as_json)


@stats.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=FILE, help="The statistics file to write.")
@json_option
def merge(files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Add up statistics of one model over disjoint calibration sets.

    \b
    Examples:
      trimoe stats merge monday.safetensors tuesday.safetensors -o both.safetensors
    """
    from trimoe.artifact import require_absent
    from trimoe.measure.merge import merge as add

    require_absent(out)
    merged = add([open_stats(file) for file in files])
    merged.save(out)
    emit({"stats": str(out), **summary(merged)}, f"{len(files)} files merged; wrote {out}", as_json)


def summary(loaded: "ExpertStats") -> dict[str, Any]:
    """What `stats show` says, as plain data."""
    import numpy as np

    _, layers, experts = loaded.shape
    tc = loaded.fields.get("tc")
    classes = {}
    for i, name in enumerate(loaded.classes):
        used = np.nan_to_num(tc[i], nan=0.0, posinf=0.0, neginf=0.0) if tc is not None else np.zeros((layers, experts))
        # every layer with experts routes every token, so the sum of any of them is tokens x top-k
        used = used[list(loaded.moe_layers)]
        classes[name] = {"routed_tokens": float(used[0].sum()), "never_used": int((used == 0).sum())}
    fields = {
        name: {
            "nonfinite": int((~np.isfinite(a)).sum()),
            "all_zero": not np.any(a),
            "extreme": int((np.isfinite(a) & (np.abs(a) > 1e6)).sum()) if name in ("wnorm", "rnorm") else 0,
        }
        for name, a in sorted(loaded.fields.items())
    }
    return {
        "num_layers": layers,
        "num_experts": experts,
        "classes": classes,
        "fields": fields,
        "model": loaded.metadata.get("model"),
        "set": loaded.metadata.get("set"),
        "metadata": loaded.metadata,
        "sha256": loaded.content_hash,
    }


COMMANDS = [stats]
