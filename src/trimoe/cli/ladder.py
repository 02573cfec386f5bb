"""`trimoe ladder`: quality against file size, for several models and tiers."""

from collections.abc import Sequence
from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.io.sizes import parse_bytes
from trimoe.judge.frontier.frontier import Frontier, frontier
from trimoe.judge.frontier.points import GB, Pair, Point, gigabytes
from trimoe.judge.text import columns, comma_separated, markdown, safe

PATH = click.Path(path_type=Path)
HEAD = ("model", "tier", "kind", "GB", "bpw", "score", "95 %", "front")


@click.command()
@click.argument("file", metavar="SCORES.csv", type=PATH)
@click.argument("logs", metavar="[RUNS.db ...]", type=PATH, nargs=-1)
@click.option("--bench", required=True, help="Bench whose scores are shown.")
@click.option("--ours", metavar="MODEL", help="Pair this model's files by size with those of every other model.")
@click.option(
    "--pick",
    type=click.Choice(["nearest", "best"]),
    default="nearest",
    show_default=True,
    help="File of a size band that is paired: the nearest in size, or the best score.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Half width of a size band, as a share of the rival's size.",
)
@click.option("--under", metavar="SIZE", help="Show the best file of at most this size, for example 13GB.")
@click.option(
    "--within",
    metavar="POINTS",
    type=click.FloatRange(0, 100),
    help="Show the smallest file at most this many points below the best.",
)
@click.option("--plot", type=PATH, help="Plot score against size, as .svg or .png (extra: report).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "csv"]),
    default="text",
    show_default=True,
    help="Format of the table.",
)
@json_option
def ladder(
    file: Path,
    logs: tuple[Path, ...],
    bench: str,
    ours: str | None,
    pick: str,
    tolerance: float,
    under: str | None,
    within: float | None,
    plot: Path | None,
    form: str,
    as_json: bool,
) -> None:
    """Show quality against file size, with the Pareto front.

    Adds bits per weight, and puts files of equal size side by side.

    SCORES.csv has one file per line. A row with `run` is measured: its score comes from the run log. A row with `score`
    is a published number; it is marked everywhere, has a front of its own, and never a paired test.

    \b
    Examples:
      trimoe ladder scores.csv runs.db --bench humaneval-plus --under 13GB --within 1
      trimoe ladder scores.csv --bench humaneval-plus --ours 98e --plot ladder.svg
    """
    made = frontier(
        file,
        logs,
        bench=bench,
        ours=ours,
        pick="best" if pick == "best" else "nearest",
        tolerance=tolerance,
        under=under,
        within=within,
    )
    body = made.as_dict()
    if plot is not None:
        from trimoe.report.ladder_plot import write_ladder_plot

        write_ladder_plot(plot, bench, list(made.points))
        body["plot"] = str(plot)
    lines = _answers(made, under, within, ours, tolerance)
    lines += [f"! {safe(p.label)}: {safe(', '.join(p.marks))}" for p in made.points if p.marks]
    listed = sorted(
        zip(made.points, made.on_front, strict=True), key=lambda one: (one[0].kind, one[0].model, -one[0].size)
    )
    rows = [_row(point, on_front) for point, on_front in listed]
    if form == "csv":
        cells = [
            [*row[:5], row[5].removesuffix(" !"), *row[6:], "; ".join(p.marks)]
            for row, (p, _) in zip(rows, listed, strict=True)
        ]
        emit(body, comma_separated((*HEAD, "marks"), cells).rstrip("\n"), as_json)
        if lines and not as_json:
            click.echo("\n".join(lines).strip(), err=True)  # keeps the CSV on standard output clean
        return
    table = markdown(HEAD, rows, left=3) if form == "markdown" else columns(HEAD, rows, left=3)
    emit(body, "\n".join([table, "", *lines]).rstrip(), as_json)


def _answers(made: Frontier, under: str | None, within: float | None, ours: str | None, tolerance: float) -> list[str]:
    """What --under, --within and --ours asked for."""
    lines = []
    if made.best_under is not None and under is not None:
        lines.append(f"best under {parse_bytes(under) / GB:g} GB: {_name(made.best_under)}")
    if (found := made.smallest_within) is not None:
        lines.append(f"smallest within {within:g} points of {_name(found.top)}: {_name(found.point)}")
    if made.pick is not None:
        lines += ["", f"{ours} ({made.pick} in size bands of +-{100 * tolerance:g} %)", _pairs(made.pairs)]
    return lines


def _name(point: Point) -> str:
    return f"{point.label}, {gigabytes(point.size)} GB, {100 * point.score:.2f} %{_mark(point)} ({point.kind})"


def _mark(point: Point) -> str:
    return " !" if point.marks else ""


def _row(p: Point, on_front: bool) -> list[str]:
    interval = "" if p.interval is None else f"{100 * p.interval[0]:.1f} to {100 * p.interval[1]:.1f}"
    bpw = "" if p.bpw is None else f"{p.bpw:.2f}"
    return [
        p.model,
        p.tier,
        p.kind,
        gigabytes(p.size),
        bpw,
        f"{100 * p.score:.2f}{_mark(p)}",
        interval,
        "yes" if on_front else "",
    ]


def _pairs(pairs: Sequence[tuple[Point, Pair | None]]) -> str:
    rows = []
    for rival, pair in pairs:
        theirs = [rival.label, gigabytes(rival.size), f"{100 * rival.score:.2f}{_mark(rival)}"]
        if pair is None:
            rows.append([*theirs, "none of this size", "", "", "", ""])
            continue
        test = "" if pair.p is None else f"{pair.p:.2g}"
        rows.append(
            [
                *theirs,
                pair.ours.tier,
                gigabytes(pair.ours.size),
                f"{100 * pair.ours.score:.2f}{_mark(pair.ours)}",
                f"{100 * pair.difference:+.2f}",
                test or "not measured on both sides",
            ]
        )
    table = columns(("rival", "GB", "score", "ours", "GB", "score", "difference", "p"), rows)
    return f"{table}\ndifferences of measured files are on the same items; p is not adjusted for the number of pairs"


COMMANDS = [ladder]
