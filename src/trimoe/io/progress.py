"""How long-running functions report progress: one callback type, and the places where a person can watch it.

A callback is called as `progress(done, total, text)`. `done` and `total` count the same unit (bytes, layers, prompts);
`total` is 0 while it is unknown; `text` names the current item. It runs on the worker's thread and must return quickly.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from html import escape
from threading import Event, Thread
from time import monotonic
from typing import Any

Progress = Callable[[int, int, str], None]

_REFRESH = 0.2  # seconds between two updates of a notebook's progress line


def silent(done: int, total: int, text: str = "") -> None:
    """Progress that nobody watches."""


def automatic(title: str) -> AbstractContextManager[Progress]:
    """A progress line in a notebook or, on standard error, in a terminal; silent elsewhere. Removed at the end."""
    if _in_notebook():
        return _notebook(title)
    return _bar(title) if sys.stderr.isatty() else nullcontext(silent)


def terminal(title: str) -> AbstractContextManager[Progress]:
    """Progress on standard error while the block runs: a bar in a terminal, lines of text in a file or pipe."""
    return _bar(title) if sys.stderr.isatty() else lines(title)


class Pace:
    """How far a task is and how fast it goes. A new total, or fewer done than before, begins a new phase.

    The rate counts only what was done in this phase: a resumed command begins with most of the work behind it.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.done = self.total = self._first = 0
        self.text, self._begun = "", clock()

    def update(self, done: int, total: int, text: str = "") -> None:
        """Take a report; see `Progress`."""
        if total != self.total or done < self.done:
            self._first, self._begun = done, self._clock()
        self.done, self.total, self.text = done, total, text.strip()

    @property
    def share(self) -> float:
        """Done of total, 0 to 1; 0 while the total is unknown."""
        return self.done / self.total if self.total else 0.0

    def counts(self) -> str:
        """Done, total, share, rate and time left as text: `120 of 640 (19 %), 3.2/s, 2:41 left`."""
        seconds = self._clock() - self._begun
        rate = (self.done - self._first) / seconds if seconds > 0 else 0.0
        parts = [f"{_short(self.done)} of {_short(self.total)} ({self.share:.0%})".replace("%", " %")]
        if not self.total:
            parts = [_short(self.done)] if self.done else []
        if rate:
            parts.append(f"{_short(rate)}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each")
            if self.done < self.total:
                parts.append(f"{clock_time((self.total - self.done) / rate)} left")
        return ", ".join(parts)


def clock_time(seconds: float) -> str:
    """Seconds as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(count: float) -> str:
    """A count with three digits or more; from a million on with a unit prefix, because then it counts bytes."""
    for step, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= step:
            return f"{count / step:.3g} {prefix}" if count < 1000 * step else f"{count / step:,.0f} {prefix}"
    return f"{count:,.0f}" if count >= 100 or count == int(count) else f"{count:.2g}"


@contextmanager
def lines(title: str, every: float = 10.0, first: float = 5.0) -> Iterator[Progress]:
    """Lines on standard error, for a file, a pipe or the log of a build service.

    The first line comes after `first` seconds (a shorter command prints none), then one every `every` seconds, or
    sooner at each further 5 %, but never two within a second. A thread writes them, so a step that reports nothing
    for minutes is seen to run.
    """
    pace, begun, stop = Pace(), monotonic(), Event()
    stream = sys.stderr

    def watch() -> None:
        shown, share, total = begun + first - every, 0.0, 0
        while not stop.wait(max(0.02, min(1.0, first, every))):
            now, part = monotonic(), pace.share
            if now - begun < first:
                continue
            if now - shown >= every or pace.total != total or abs(part - share) >= 0.05:
                shown, share, total = now, part, pace.total
                known = [part for part in (pace.counts(), pace.text) if part]
                with suppress(OSError, ValueError):  # closed: nobody watches any more
                    print(
                        f"{title}: {', '.join([*known, clock_time(now - begun) + ' so far'])}", file=stream, flush=True
                    )

    thread = Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield pace.update
    finally:
        stop.set()
        thread.join()


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    pace = Pace()
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, note="", counts="")

        def update(done: int, total: int, text: str = "") -> None:
            pace.update(done, total, text)
            bar.update(task, completed=done, total=total or None, note=text, counts=pace.counts())

        yield update


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel. IPython is never imported here: a kernel has already done so."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


@contextmanager
def _notebook(title: str) -> Iterator[Progress]:
    """One line of HTML below the cell, updated in place. Needs no widgets."""
    display: Any = sys.modules["IPython.display"]
    handle = display.display(display.HTML(""), display_id=True)
    begin, shown = monotonic(), 0.0

    def update(done: int, total: int, text: str = "") -> None:
        nonlocal shown
        now = monotonic()
        if now - shown >= _REFRESH:
            shown = now
            handle.update(display.HTML(notebook_line(title, done, total, text, now - begin)))

    try:
        yield update
    finally:
        handle.update(display.HTML(""))


def notebook_line(title: str, done: int, total: int, text: str, seconds: float) -> str:
    """The HTML of a notebook's progress line; `seconds` have passed since the start."""
    bar = f'<progress value="{done}" max="{total}"></progress> {done} of {total}' if total else "<progress></progress>"
    left = f", about {seconds * (total - done) / done:.0f} s left" if 0 < done < total else ""
    return f"<div>{escape(title)} {bar}, {seconds:.0f} s{left} {escape(text)}</div>"
