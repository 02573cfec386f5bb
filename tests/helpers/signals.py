"""Processes that signal themselves at a chosen call, so that no test of a kill or an interrupt races the clock.

A moment is a number of calls: of one function (counted when it returns), or of anything, in any thread that starts
later. The signal is a real one, sent by the process to itself or to its process group. A test must assert how the
process ended: one that never reaches the moment runs to its end.
"""

import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ANY = "*"
"""Stands for calls of anything."""


def signal_at(
    number: int, sig: int = signal.SIGKILL, function: str = ANY, *, later: int = 0, group: bool = False
) -> None:
    """Send `sig` to this process when `function` has returned for the `number`th time, and `later` calls after that.

    `function` is MODULE:NAME or MODULE:CLASS.NAME; it is replaced where it is defined, so a function that other modules
    imported by name must be one of a class.
    """

    def act() -> None:
        (os.killpg if group else os.kill)(os.getpid(), sig)

    if function == ANY:
        _watch(number, act)
    else:
        _replace(function, number, (lambda: _watch(later, act)) if later else act)


def count_calls() -> Callable[[], int]:
    """Count every call from here on; returns what reads the counter."""
    return _watch(0, lambda: None)


def _replace(function: str, number: int, act: Callable[[], object]) -> None:
    module, _, path = function.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, seen, lock = getattr(owner, name), 0, threading.Lock()

    @functools.wraps(real)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        result = real(*args, **kwargs)
        with lock:
            seen += 1
            reached = seen == number
        if reached:
            act()
        return result

    setattr(owner, name, counted)


def _watch(number: int, act: Callable[[], object]) -> Callable[[], int]:
    seen, lock = 0, threading.Lock()

    def watch(_: FrameType, event: str, __: Any) -> None:
        nonlocal seen
        if event != "call":
            return
        with lock:
            seen += 1
            reached = seen == number
        if reached:
            threading.setprofile(None)  # type: ignore[arg-type]
            sys.setprofile(None)
            act()

    threading.setprofile(watch)
    sys.setprofile(watch)
    return lambda: seen


def command(sig: int, number: int, function: str, arguments: Sequence[object], *, group: bool = False) -> list[str]:
    """A command that runs `trimoe ARGUMENTS` and signals itself; give `group` with start_new_session=True."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from helpers.signals import main; main()"
    return [sys.executable, "-c", code, str(int(sig)), str(number), function, str(int(group)), *map(str, arguments)]


def main() -> None:
    """The child's side of `command`."""
    sig, number, function, group, *arguments = sys.argv[1:]
    from trimoe.cli.main import main as trimoe

    signal_at(int(number), int(sig), function, group=bool(int(group)))
    sys.exit(trimoe(arguments))
