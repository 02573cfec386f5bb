"""`trimoe compare`: what a change cost, bench by bench."""

from pathlib import Path

import click

from trimoe.cli.common import emit, json_option
from trimoe.judge.compare import Comparison, Row, compare_runs


@click.command()
@click.argument("log", metavar="RUNS.db", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
@click.option("--base", help="Name of the run to compare against (default: the first in the log).")
@json_option
def compare(log: Path, names: tuple[str, ...], base: str | None, as_json: bool) -> None:
    """Compare evaluated models question by question against a base.

    Accuracy has a 95 % Wilson interval, the difference is paired (Newcombe), p is an exact McNemar test,
    adjusted for the number of rows in the table (Holm).

    \b
    Examples:
      trimoe compare runs.db
      trimoe compare runs.db --base base reap v5-coder
      trimoe compare runs.db --json
    """
    comparison = compare_runs(log, base, list(names) or None)
    emit(comparison.as_dict(), "" if as_json else table(comparison), as_json)


def table(comparison: Comparison) -> str:
    """The comparison for people, as text as wide as the terminal allows."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"Against {comparison.base}; shares in %, differences in points", title_justify="left")
    view.add_column("bench", no_wrap=True)
    view.add_column("model", no_wrap=True)
    for heading in ("n", "right", "95 %", "difference", "95 %", "lost/gained", "p", "p (Holm)"):
        view.add_column(heading, justify="right", no_wrap=True)
    previous = ""
    for row in comparison.rows:
        if previous and row.bench != previous:
            view.add_section()
        view.add_row(*_cells(row, first=row.bench != previous))
        previous = row.bench
    console = Console(width=max(130, Console().width))
    with console.capture() as capture:
        console.print(view)
    missing = sum(row.unscored for row in comparison.rows)
    note = f"\n{missing} samples could not be scored (harness errors): run eval again." if missing else ""
    return capture.get().rstrip() + note


def _cells(row: Row, first: bool) -> list[str]:
    accuracy = "not scored" if row.accuracy is None else f"{100 * row.accuracy:.1f}"
    cells = [row.bench if first else "", row.name, str(row.n), accuracy, f"{100 * row.low:.1f} to {100 * row.high:.1f}"]
    if row.difference is None or row.difference_low is None or row.difference_high is None or row.p is None:
        return [*cells, "", "", "", "", ""]
    interval = f"{100 * row.difference_low:+.1f} to {100 * row.difference_high:+.1f}"
    adjusted = "" if row.p_holm is None else f"{row.p_holm:.2g}"
    return [*cells, f"{100 * row.difference:+.1f}", interval, f"{row.lost}/{row.gained}", f"{row.p:.2g}", adjusted]


COMMANDS = [compare]
