"""The live table of an evaluation: one line per bench, on a terminal.

Invariants: everything it counts is already stored. Without a terminal, lines of text tell how far it is.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from trimoe.evaluate.tally import Show, Tally
from trimoe.io.progress import Progress, clock_time, lines

if TYPE_CHECKING:
    from rich.table import Table

_EVERY = 0.2  # seconds between two updates


@contextmanager
def live() -> Iterator[Show | None]:
    """A function that shows a tally while the block runs; None unless standard error is a terminal (see `plain`)."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    tallies: dict[str, Tally] = {}
    with Live(console=Console(stderr=True), refresh_per_second=1 / _EVERY, transient=True) as screen:
        drawn = 0.0

        def show(tally: Tally) -> None:
            nonlocal drawn
            tallies[tally.bench] = tally
            if monotonic() - drawn >= _EVERY or tally.done + tally.errors >= tally.total:
                drawn = monotonic()
                screen.update(table(list(tallies.values())))

        yield show


@contextmanager
def plain(title: str) -> Iterator[Progress | None]:
    """Lines of text on standard error while the block runs; None in a terminal, where `live` shows the table."""
    if sys.stderr.isatty():
        yield None
        return
    with lines(title) as progress:
        yield progress


def table(tallies: list[Tally]) -> "Table":
    """The tallies as a rich table."""
    from rich.table import Table  # slow to import, and needed only on a terminal

    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("bench")
    for title in ("done", "correct", "empty", "truncated", "errors", "tokens/s", "ETA"):
        drawn.add_column(title, justify="right")
    for tally in tallies:
        drawn.add_row(*cells(tally))
    return drawn


def cells(tally: Tally, now: float | None = None) -> tuple[str, ...]:
    """One line: counts so far; speed and remaining time from the replies of this command."""
    seconds = max((tally.last if now is None else now) - tally.began, 1e-9)
    left = tally.total - tally.done - tally.errors
    eta = "" if not left else clock_time(left * seconds / tally.fresh) if tally.fresh else "?"
    correct = f"{100 * tally.correct / tally.scored:.1f} %" if tally.scored else "-"
    speed = f"{tally.tokens / seconds:,.0f}" if tally.tokens else "-"
    return (
        tally.bench,
        f"{tally.done}/{tally.total}",
        correct,
        *(str(count) for count in (tally.empty, tally.truncated, tally.errors)),
        speed,
        eta,
    )
