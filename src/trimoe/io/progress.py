"""How long-running functions report progress: one callback type, and the places where a person can watch it.

A callback is called as `progress(done, total, text)`. `done` and `total` count the same unit (bytes, layers, prompts);
`total` is 0 while it is unknown; `text` names the current item. It runs on the worker's thread and must return quickly.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
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
    return terminal(title)


def terminal(title: str) -> AbstractContextManager[Progress]:
    """A progress bar on standard error while the block runs; silent unless standard error is a terminal."""
    return _bar(title) if sys.stderr.isatty() else nullcontext(silent)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total or None, note=text)

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
