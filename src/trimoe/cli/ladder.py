"""`trimoe ladder`: quality against file size, several models and tiers."""

from math import isfinite
from pathlib import Path
from typing import Any, Literal, cast

import click

from trimoe.cli.parts.common import emit, json_option, parse_size
from trimoe.errors import UsageError
from trimoe.judge.frontier.file import read_ladder
from trimoe.judge.frontier.frontier import (
    GB,
    Pair,
    Point,
    best_under,
    front,
    gigabytes,
    pair_by_size,
    paired,
    smallest_within,
)
from trimoe.judge.text import columns, comma_separated, markdown

PATH = click.Path(path_type=Path)
HEAD = ("model", "tier", "kind", "GB", "bpw", "score", "95 %", "front")


@click.command()
@click.argument("file", metavar="LADDER.csv", type=PATH)
@click.argument("logs", metavar="[RUNS.db ...]", type=PATH, nargs=-1)
@click.option("--bench", required=True, help="The bench whose scores are shown.")
@click.option("--ours", metavar="MODEL", help="Pair this model's files with those of every other model by size.")
@click.option(
    "--pick",
    type=click.Choice(["nearest", "best"]),
    default="nearest",
    show_default=True,
    help="Which file of the size band is paired: the nearest in size, or the best score.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Width of a size band, as a share of the rival's size to each side.",
)
@click.option("--under", metavar="SIZE", help="Name the best file of at most this size, for example 13GB.")
@click.option(
    "--within",
    metavar="POINTS",
    type=click.FloatRange(0, 100),
    help="Name the smallest file within so many points of the best.",
)
@click.option("--plot", type=PATH, help="Draw score over size, as .svg or .png (extra: report).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "csv"]),
    default="text",
    show_default=True,
    help="How the table of files is written.",
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

    LADDER.csv has one file per line. A row with `run` is measured: its score comes from the run log. A row with `score`
    is a published number; it is marked everywhere, has a front of its own, and never a paired test.

    \b
    Examples:
      trimoe ladder ladder.csv runs.db --bench humaneval-plus --under 13GB --within 1
      trimoe ladder ladder.csv --bench humaneval-plus --ours 98e --plot ladder.svg
    """
    if not isfinite(tolerance) or (within is not None and not isfinite(within)):
        raise UsageError("--tolerance and --within are numbers", actual="nan", remedy="give a finite number")
    points = read_ladder(file, list(logs), bench)
    known = list(dict.fromkeys(p.model for p in points))
    if ours is not None and ours not in known:
        raise UsageError(f"no model {ours} in {file}", expected=", ".join(known), remedy="correct --ours")
    limit = parse_size(under, "13GB") if under else None
    fronts = {id(p) for kind in ("measured", "published") for p in front([p for p in points if p.kind == kind])}
    own = [p for p in points if p.model == ours] if ours else points
    body: dict[str, Any] = {"bench": bench, "points": [p.as_dict() | {"front": id(p) in fronts} for p in points]}
    lines = []
    # which file to take is asked of one kind at a time: of what was measured here, if anything was
    choice = [p for p in own if p.kind == "measured"] or own
    if limit is not None:
        best = best_under(choice, limit)
        body["best_under"] = best.as_dict()
        lines.append(f"best under {limit / GB:g} GB: {_name(best)}")
    if within is not None:
        small, top = smallest_within(choice, within)
        body["smallest_within"] = small.as_dict() | {"p": None if small is top else paired(top, small)[1]}
        lines.append(f"smallest within {within:g} points of {_name(top)}: {_name(small)}")
    if ours is not None:
        pairs = pair_by_size(own, [p for p in points if p.model != ours], tolerance, _pick(pick))
        body["pairs"] = [_pair(rival, pair) for rival, pair in pairs]
        body["pick"] = pick
        lines += ["", f"{ours} ({pick} in size bands of +-{100 * tolerance:g} %)", _pairs(pairs)]
    if plot is not None:
        from trimoe.report.ladder_plot import write_ladder_plot

        write_ladder_plot(plot, bench, points)
        body["plot"] = str(plot)
    rows = [_row(p, id(p) in fronts) for p in sorted(points, key=lambda p: (p.kind, p.model, -p.size))]
    if form == "csv":
        emit(body, comma_separated(HEAD, rows).rstrip("\n"), as_json)
        if lines and not as_json:
            click.echo("\n".join(lines).strip(), err=True)  # beside the file that the output becomes
        return
    table = markdown(HEAD, rows, left=3) if form == "markdown" else columns(HEAD, rows, left=3)
    emit(body, "\n".join([table, "", *lines]).rstrip(), as_json)


def _pick(text: str) -> Literal["nearest", "best"]:
    return cast(Literal["nearest", "best"], text)


def _name(point: Point) -> str:
    return f"{point.label}, {gigabytes(point.size)} GB, {100 * point.score:.2f} % ({point.kind})"


def _row(p: Point, on_front: bool) -> list[str]:
    interval = "" if p.interval is None else f"{100 * p.interval[0]:.1f} to {100 * p.interval[1]:.1f}"
    bpw = "" if p.bpw is None else f"{p.bpw:.2f}"
    return [
        p.model,
        p.tier,
        p.kind,
        gigabytes(p.size),
        bpw,
        f"{100 * p.score:.2f}",
        interval,
        "yes" if on_front else "",
    ]


def _pair(rival: Point, pair: Pair | None) -> dict[str, Any]:
    if pair is None:
        return {"rival": rival.as_dict(), "ours": None, "difference": None, "p": None}
    return {"rival": rival.as_dict(), "ours": pair.ours.as_dict(), "difference": pair.difference, "p": pair.p}


def _pairs(pairs: list[tuple[Point, Pair | None]]) -> str:
    rows = []
    for rival, pair in pairs:
        theirs = [rival.label, gigabytes(rival.size), f"{100 * rival.score:.2f}"]
        if pair is None:
            rows.append([*theirs, "none of that size", "", "", "", ""])
            continue
        test = "" if pair.p is None else f"{pair.p:.2g}"
        rows.append(
            [
                *theirs,
                pair.ours.tier,
                gigabytes(pair.ours.size),
                f"{100 * pair.ours.score:.2f}",
                f"{100 * pair.difference:+.2f}",
                test or "not measured on both sides",
            ]
        )
    table = columns(("rival", "GB", "score", "ours", "GB", "score", "difference", "p"), rows)
    return (
        f"{table}\ndifferences of measured files are on the same items; p of each alone, not adjusted for their number"
    )


COMMANDS = [ladder]
