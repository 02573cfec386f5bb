"""`trimoe report`: writes a self-contained HTML report over run logs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimoe.cli.parts.common import emit, json_option, require_extra
from trimoe.errors import UsageError

if TYPE_CHECKING:
    from trimoe.judge.frontier.points import Point
    from trimoe.report.heat import Panel

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("logs", metavar="RUNS.db [RUNS2.db ...]", type=PATH, nargs=-1, required=True)
@click.option(
    "-o", "--out", "--output", type=PATH, required=True, help="The .html file to write; an existing report is replaced."
)
@click.option("--base", help="Name of the run to compare against (default: the first in the logs).")
@click.option("--title", help="Heading of the page (default: what is compared with what).")
@click.option(
    "--ladder",
    "sizes",
    type=PATH,
    metavar="SCORES.csv",
    help="File sizes and published numbers, as `trimoe ladder` reads them; needs --bench.",
)
@click.option("--bench", "benches", multiple=True, help="A bench whose ladder is drawn (may be repeated).")
@click.option("--stats", type=PATH, help="Statistics file whose experts are drawn as heatmaps.")
@click.option("--by", metavar="CRITERION", help="What the heatmaps show, as in `trimoe stats show --by`.")
@json_option
def report(
    logs: tuple[Path, ...],
    out: Path,
    base: str | None,
    title: str | None,
    sizes: Path | None,
    benches: tuple[str, ...],
    stats: Path | None,
    by: str | None,
    as_json: bool,
) -> None:
    """Write a self-contained HTML report over run logs.

    It has a scoreboard, paired differences, lost items by cause, and the audit.

    The page has no script and loads nothing. Runs under another engine, sampler or stack have tables of their own.
    A score that the audit refuses is shown with its reason, and listed first.

    \b
    Examples:
      trimoe report runs.db -o report.html
      trimoe report runs.db other.db --base base -o report.html
      trimoe report runs.db -o report.html --ladder scores.csv --bench humaneval-plus
      trimoe report runs.db -o report.html --stats stats.safetensors
    """
    require_extra("report", "trimoe report")
    from trimoe.report.board import make_board
    from trimoe.report.board_page import render_board, write_board

    if out.suffix not in (".html", ".htm"):
        raise UsageError(
            f"a report cannot be written as {out.name}",
            expected="a name that ends with .html",
            remedy="choose another -o",
        )
    if bool(sizes) != bool(benches):
        raise UsageError("--ladder and --bench belong together", remedy="give both, or leave both out")
    if by is not None and stats is None:
        raise UsageError("--by says how statistics are drawn", remedy="add --stats, or leave it out")
    board = make_board(logs, base, title or "")
    ladders = {bench: _points(sizes, logs, bench, len(benches) == 1) for bench in benches} if sizes else {}
    write_board(render_board(board, ladders, _panels(stats, by) if stats else ()), out)
    refused = [f"{line.row.name} on {line.row.bench}" for line in board.verdicts("refused")]
    body = {
        "report": str(out),
        "base": board.base,
        "models": list(board.names),
        "benches": list(board.benches),
        "runs": len(board.lines),
        "refused": refused,
    }
    text = f"wrote {out}: {len(board.lines)} runs on {len(board.benches)} benches, compared with {board.base}"
    if refused:
        text += f"\n{len(refused)} refused by the audit: {', '.join(refused)}"
    emit(body, text, as_json)


def _points(sizes: Path, logs: tuple[Path, ...], bench: str, alone: bool) -> "list[Point]":
    from trimoe.judge.frontier.score_table import read_score_table

    points = read_score_table(sizes, logs, bench, only_bench=alone)
    if not points:
        raise UsageError(f"{sizes} has no file of {bench}", remedy="correct --bench, or add rows")
    return points


def _panels(stats: Path, by: str | None) -> "list[Panel]":
    """One heatmap per class, as `trimoe stats show --heatmap` draws them."""
    from trimoe.calibrate.stats.criteria import criterion_scores
    from trimoe.calibrate.stats.reference import open_stats
    from trimoe.report.heat import Panel

    loaded = open_stats(stats)
    by, scores = criterion_scores(loaded, by)
    layers = [int(layer) for layer in loaded.moe_layers]
    return [Panel(f"{name}, by {by}", scores[i, layers].tolist()) for i, name in enumerate(loaded.classes)]


COMMANDS = [report]
