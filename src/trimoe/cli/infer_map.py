"""`trimoe infer-map`: parse, call, print."""

from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option, progress


@click.command(name="infer-map")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", "--output", "output", required=True, type=click.Path(path_type=Path), help="The drop map to write."
)
@json_option
def infer_map(base: Path, pruned: Path, output: Path, as_json: bool) -> int:
    """Recover the drop map of a pruned model; list other changes.

    \b
    Exit codes: 0 map written, only experts differ; 1 a finding: something else was changed too (the map
    is written), or no map leads from BASE to PRUNED (nothing is written); 3 bad input.

    \b
    Examples:
      trimoe infer-map gemma-4-26B-A4B-it someones-98e -o map.json
      trimoe infer-map base-Q6_K.gguf someones-Q6_K.gguf -o map.json
      trimoe certify gemma-4-26B-A4B-it someones-98e --map map.json
    """
    from trimoe.certify.expected import kept_count
    from trimoe.certify.infer import infer_map as run

    with progress("infer-map") as report:
        result = run(base, pruned, out=output, progress=report)
    data = {
        "map": str(output) if result.map is not None else None,
        "map_sha256": result.map.content_hash if result.map is not None else None,
        "exact": result.exact,
        "problems": result.problems,
        "changes": [finding.as_dict() for finding in result.changes],
        "scaled": result.scaled,
    }
    lines = [f"no map: {problem}" for problem in result.problems]
    if result.map is not None:
        layers, kept = len(result.map.drop), kept_count(result.map)
        lines.append(f"{layers} layers, {result.map.num_experts} -> {kept} experts; wrote {output}")
        for change in result.changes:
            lines.append(f"also changed: {change}{_factor(result.scaled.get(change.tensor or ''))}")
        if result.exact:
            lines.append("nothing else was changed")
    emit(data, "\n".join(lines), as_json)
    return 0 if result.exact else 1


def _factor(alpha: float | None) -> str:
    return "" if alpha is None else f" (the original times {alpha:.4g})"


COMMANDS = [infer_map]
