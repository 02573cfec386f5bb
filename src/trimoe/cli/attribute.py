"""`trimoe attribute`: which step lost which items, and which dropped experts would bring them back."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.errors import UsageError
from trimoe.judge.attribute import Chain, attribute_chain, causes
from trimoe.judge.text import columns, safe, some

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("logs", metavar="RUNS.db [RUNS2.db ...]", type=PATH, nargs=-1, required=True)
@click.option(
    "--chain", required=True, metavar="BASE,PRUNED,...", help="Names of the runs in the order they were made."
)
@click.option("--bench", "benches", multiple=True, help="Only this bench (may be repeated; default: all common ones).")
@click.option("--model", type=PATH, help="The base checkpoint, to measure which experts the lost items used.")
@click.option("--map", "drop", type=PATH, help="The drop map of the first step.")
@click.option("-o", "--out", type=PATH, help="Force-keep file to write, for `trimoe map --force-keep`.")
@click.option("--work", type=PATH, help="Folder for traces and their statistics (default: OUT.traces).")
@click.option("--most", type=click.IntRange(1), default=32, show_default=True, help="Experts to suggest at most.")
@json_option
def attribute(
    logs: tuple[Path, ...],
    chain: str,
    benches: tuple[str, ...],
    model: Path | None,
    drop: Path | None,
    out: Path | None,
    work: Path | None,
    most: int,
    as_json: bool,
) -> None:
    """Show which step of pruning to serving lost each item.

    With the base checkpoint and the drop map it also measures the base on the items that the first step lost, and
    writes the dropped experts that it used there as a force-keep file. The swap is a suggestion: evaluate the new map.

    \b
    Examples:
      trimoe attribute runs.db --chain base,pruned,quantized
      trimoe attribute runs.db --chain base,pruned --model MODEL --map map.json -o keep.txt
    """
    if len({model is None, drop is None, out is None}) > 1:
        raise UsageError("--model, --map and -o go together", remedy="give all three, or none")
    names = [name.strip() for name in chain.split(",")]
    made, runs = attribute_chain(list(logs), names, list(benches) or None)
    body: dict[str, Any] = made.as_dict()
    text = _text(made)
    if model is not None and drop is not None and out is not None:
        from trimoe.choose.dropmap import DropMap
        from trimoe.io.atomic import publish_file, require_absent
        from trimoe.judge.lost_experts import force_keep, measured, suggest, write_traces

        require_absent(out)
        gone = DropMap.load(drop)
        folder = work or out.with_name(out.name + ".traces")
        chosen, lost, kept = write_traces(made, runs, folder)
        with progress("measuring lost items"):
            found = suggest(measured(model, chosen), gone, most)
        with publish_file(out) as temporary:
            temporary.write_text(force_keep(found, names), encoding="utf-8")
        body |= {"suggestion": found.as_dict(), "lost": lost, "kept": kept, "force_keep": str(out)}
        text += (
            f"\n\nDropped experts carried {100 * found.gone_lost:.1f} % of the base's expert output on {lost} lost "
            f"items, {100 * found.gone_kept:.1f} % on {kept} surviving ones.\n"
            f"wrote {out}: {len(found.pins)} experts to keep, best first: "
            + some([f"{p.layer}:{p.expert}" for p in found.pins])
        )
    emit(body, text, as_json)


def _text(chain: Chain) -> str:
    lines = []
    for bench in chain.benches:
        right = ", ".join(f"{safe(n)} {c}" for n, c in zip(chain.names, bench.correct, strict=True))
        lines.append(f"{safe(bench.bench)}: right of {bench.items} common items: {right}")
        rows = [
            [
                f"{safe(s.before)} to {safe(s.after)}",
                f"{len(s.gained) - len(s.lost):+d}",
                str(len(s.lost)),
                str(len(s.gained)),
                str(len(s.stays)),
                causes(s.lost),
            ]
            for s in bench.steps
        ]
        lines.append(columns(("step", "net", "lost", "gained", "lost for good", "how"), rows))
        for step in bench.steps:
            if step.changed:
                changed = safe(", ".join(step.changed))
                lines.append(f"{safe(step.after)} also changes {changed}: its losses are of both")
            if step.stays:
                lines.append(f"lost for good by {safe(step.after)}: {some(step.stays)}")
        lines.append("")
    return "\n".join(lines).rstrip()


COMMANDS = [attribute]
