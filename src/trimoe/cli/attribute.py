"""`trimoe attribute`: the step that lost each item, and the dropped experts that may recover it."""

from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.judge.attribute import attribute as find_losses
from trimoe.judge.chain import Chain, causes
from trimoe.judge.text import columns, safe, some

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("logs", metavar="RUNS.db [RUNS2.db ...]", type=PATH, nargs=-1, required=True)
@click.option("--chain", required=True, metavar="BASE,PRUNED,...", help="Names of the runs, in order.")
@click.option("--bench", "benches", multiple=True, help="Only this bench (may be repeated; default: all common ones).")
@click.option("--model", type=PATH, help="The base checkpoint, to measure which experts the lost items used.")
@click.option("--map", "drop", type=PATH, help="The drop map of the first step.")
@click.option("-o", "--out", "--output", type=PATH, help="Force-keep file to write, for `trimoe map --force-keep`.")
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

    With the base checkpoint and the drop map, the base is also measured on the items that the first step lost, and the
    dropped experts that it used there are written as a force-keep file. They are a suggestion: evaluate the new map.

    \b
    Examples:
      trimoe attribute runs.db --chain base,pruned,quantized
      trimoe attribute runs.db --chain base,pruned --model MODEL --map map.json -o keep.txt
    """
    with progress("attribute"):
        made = find_losses(
            logs, chain, benches=benches or None, model=model, drop_map=drop, out=out, work=work, most=most
        )
    text = _text(made.chain)
    if (keep := made.keep) is not None:
        found = keep.suggestion
        text += (
            f"\n\nDropped experts carried {100 * found.gone_lost:.1f} % of the base's expert output on {keep.lost} "
            f"lost items, {100 * found.gone_kept:.1f} % on {keep.kept} surviving ones.\n"
            f"wrote {keep.force_keep}: {len(found.pins)} experts to keep, best first: "
            + some([f"{p.layer}:{p.expert}" for p in found.pins])
        )
    emit(made.as_dict(), text, as_json)


def _text(chain: Chain) -> str:
    lines = []
    for bench in chain.benches:
        runs = list(zip(chain.names, bench.correct, bench.marks, strict=True))
        right = ", ".join(f"{safe(name)} {correct}{' !' * bool(marks)}" for name, correct, marks in runs)
        lines.append(f"{safe(bench.bench)}: right of {bench.items} common items: {right}")
        lines += [f"! {safe(name)}: {safe(', '.join(marks))}" for name, _, marks in runs if marks]
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
        lines.append(columns(("step", "net", "lost", "gained", "lost for good", "causes"), rows))
        for step in bench.steps:
            if step.changed:
                changed = safe(", ".join(step.changed))
                lines.append(f"{safe(step.after)} also changes {changed}: its losses may be due to either")
            if step.stays:
                lines.append(f"lost for good by {safe(step.after)}: {some(step.stays)}")
        lines.append("")
    return "\n".join(lines).rstrip()


COMMANDS = [attribute]
