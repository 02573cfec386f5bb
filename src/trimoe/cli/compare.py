"""`trimoe compare`: what a change cost, bench by bench."""

from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import UsageError
from trimoe.judge import tables
from trimoe.judge.compare import compare as compare_runs


@click.command()
@click.argument("log", metavar="RUNS.db", type=click.Path(path_type=Path))
@click.argument("more", metavar="[RUNS2.db ...] [NAMES]...", nargs=-1)
@click.option("--base", help="Name of the run to compare against (default: the first in the log).")
@click.option(
    "--against",
    metavar="NAME",
    multiple=True,
    help="Name to compare with the base; more may follow (default: all others).",
)
@click.option(
    "--side-by-side",
    is_flag=True,
    help="Show runs of other engines, samplers or stacks in separate columns.",
)
@click.option("--flips", is_flag=True, help="List every item that was lost or gained, with its cause.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "csv"]),
    default="text",
    show_default=True,
    help="Format of the table.",
)
@json_option
def compare(
    log: Path,
    more: tuple[str, ...],
    base: str | None,
    against: tuple[str, ...],
    side_by_side: bool,
    flips: bool,
    form: str,
    as_json: bool,
) -> None:
    """Compare evaluated models with a base, item by item.

    Scores have a standard error and a 95 % Wilson interval. The difference is paired: interval (Tango), bootstrap
    interval, exact McNemar test, adjusted for the number of tests in the table (Holm), and the smallest difference
    that is detectable with 80 % power. Lost items come with their causes. Runs of another engine, sampler or stack
    are refused (exit code 5) unless shown side by side.

    \b
    Examples:
      trimoe compare runs.db
      trimoe compare runs.db --base base --against reap v5-coder
      trimoe compare runs.db other.db --side-by-side --format markdown
      trimoe compare runs.db --flips --json
    """
    logs, names = split_arguments(more)
    others = [*against, *names]
    comparison = compare_runs([log, *logs], base=base, against=others or None, side_by_side=side_by_side)
    write = {"text": tables.text, "markdown": tables.as_markdown, "csv": tables.as_csv}[form]
    text = "" if as_json else write(comparison).rstrip("\n")
    if flips and not as_json:
        if form != "text":
            raise UsageError("--flips needs --format text", actual=form, remedy="use --json, which lists every flip")
        text += "\n\n" + (tables.flips(comparison) or "no item flipped")
    emit(comparison.as_dict(), text, as_json)


def split_arguments(more: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Further arguments as (logs, names): existing files and words ending in .db are logs, all others names of runs."""
    logs = [word for word in more if Path(word).is_file() or word.endswith(".db")]
    return [Path(word) for word in logs], [word for word in more if word not in logs]


COMMANDS = [compare]
