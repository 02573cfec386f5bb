"""The worker: enters its namespaces, then runs one job after the other for the process that started it.

Frames on standard input: a length (4 bytes, big endian), a JSON header, then the data of each sample of the job, with
the sizes given in the header. Frames on standard output: a length, a JSON header with "size", then that many bytes of
results. The first output frame reports whether the sandbox was built. Closing standard input ends the worker and
everything in it.
"""

import fcntl
import gc
import importlib
import json
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from trimoe.sandbox.inside import python
from trimoe.sandbox.inside.limits import Limits, resident_of, use_below
from trimoe.sandbox.inside.namespaces import enter
from trimoe.sandbox.inside.sample import Bare, Sample, Spaces, read_exactly, start

_WATCH_SECONDS = 0.05
_F_SETPIPE_SZ, _BLOCK = 1031, 1 << 20
_LAST_WORDS = 2.0  # seconds for a candidate that closed its pipe to exit, so that its exit status is known

# Imported before forking: the modules that generated code imports most often.
_WARM = (
    *("array", "ast", "bisect", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "math", "operator", "queue", "random"),
    *("re", "statistics", "string", "textwrap", "threading", "traceback", "typing", "numpy"),
)


def main() -> None:
    """Read the configuration, build the sandbox, run jobs."""
    frame = _read_frame()
    if frame is None:
        return
    config = json.loads(frame)
    del sys.path[0]  # the folder of this program
    if config["engine"] == "namespaces":
        enter(config["view"], _fault)
    sys.path += config["path"]
    try:
        spaces = Spaces(proc=config["proc"]) if config["engine"] == "namespaces" else Bare(filtered=config["filtered"])
    except OSError as exc:
        _fault("samples", exc)
    missing = [name for name in (_WARM if config["warm"] else ()) if not _imported(name)]
    gc.freeze()  # so that garbage collection in a child does not write to, and thereby copy, shared pages
    _reply({"ready": True, "python": sys.version.split()[0], "missing": missing})
    while (frame := _read_frame()) is not None:
        header = json.loads(frame)
        try:
            outcome, results = _KINDS[header["kind"]](spaces, Limits(**header["limits"]), header["sizes"])
        except (OSError, EOFError) as exc:
            _fault("run", exc)  # an unknown part of the input was read, so this worker cannot continue
        _reply(outcome, results)


def _calls(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Run the calls of one candidate; returns the report and the lines of results."""
    return _lines(_start_calls, spaces, limits, sizes)


def _compare(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Compare the results of one candidate; returns the report and one line per pair."""
    return _lines(_start_comparing, spaces, limits, sizes)


def _lines(
    role: Callable[..., NoReturn], spaces: Spaces, limits: Limits, sizes: list[int]
) -> tuple[dict[str, Any], bytes]:
    """Run a sample of one process that writes lines; returns the report and the lines."""
    out, tell = _wide_pipe()
    sample = start(spaces, sizes[0], limits, partial(role, out=tell), (tell,))
    os.close(tell)
    data, stopped = _watch(sample, out, limits)
    sample.end()
    spaces.after()
    data += _rest(out, limits)
    return {"stopped": stopped, "steps": sample.steps()}, data


def _check(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Run a data set's tests against a candidate: two samples joined by two pipes; returns the checker's verdict."""
    (asked, ask), (answered, answer), (out, tell) = _wide_pipe(), _wide_pipe(), os.pipe()
    serve = partial(_start_serving, asked=asked, answer=answer)
    candidate = start(spaces, sizes[0], limits, serve, (asked, answer))
    os.close(asked)
    os.close(answer)
    question = partial(_start_check, answered=answered, ask=ask, out=tell)
    checker = start(spaces, sizes[1], limits, question, (answered, ask, tell))
    os.close(answered)
    os.close(ask)
    os.close(tell)
    data, stopped = _watch(checker, out, limits)
    checker.end()
    if stopped is None and b'"lost"' in data:
        _watch(candidate, None, replace(limits, idle=_LAST_WORDS))
    candidate.end()
    spaces.after()
    data += _rest(out, limits)
    return {"stopped": stopped, "steps": checker.steps(), "candidate": candidate.steps()}, data


def _program(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Run the commands of a program; returns one report per command."""
    sample = start(spaces, sizes[0], limits)
    _, stopped = _watch(sample, None, limits)
    sample.end()
    spaces.after()
    return {"stopped": stopped, "steps": sample.steps()}, b""


_KINDS = {"calls": _calls, "check": _check, "compare": _compare, "program": _program}


def _start_calls(job: Any, out: int) -> NoReturn:
    _forget_ourselves()
    python.candidate_calls(job, out)


def _start_comparing(job: Any, out: int) -> NoReturn:
    python.compares(job, out)


def _start_serving(job: Any, asked: int, answer: int) -> NoReturn:
    _forget_ourselves()
    python.candidate_serves(job, asked, answer)


def _start_check(job: Any, answered: int, ask: int, out: int) -> NoReturn:
    python.check(job, answered, ask, out)


def _wide_pipe() -> tuple[int, int]:
    """A pipe with a buffer of 1 MiB, so that long results need fewer context switches."""
    ends = os.pipe()
    with suppress(PermissionError):  # too many large pipes of this user: the default 64 KiB suffices
        fcntl.fcntl(ends[0], _F_SETPIPE_SZ, _BLOCK)
    return ends


def _forget_ourselves() -> None:
    """Remove trimoe from sys.modules, so that generated code finds a plain interpreter. Not a protection."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trimoe"]:
        del sys.modules[name]


class _Meter:
    """Compares the use of a sample with its limits, every 50 ms."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._shared = limits, resident_of(os.getpid())
        self._begin = self._last = time.monotonic()
        self._idle = self._cpu_at_result = 0.0

    def exceeded(self, news: bool) -> str | None:
        """The limit that is exceeded now, if any. `news`: a result arrived since the last check."""
        now, use = time.monotonic(), use_below(os.getpid(), self._shared)
        self._idle += (
            0.0 if use.busy else min(now - self._last, 2 * _WATCH_SECONDS)
        )  # nothing is known about a longer gap
        self._last = now
        if news:
            self._cpu_at_result = use.cpu
        if use.resident > self._limits.memory:
            return "memory"
        if use.cpu > self._limits.cpu + 1 or use.cpu - self._cpu_at_result > self._limits.call_cpu:
            return "cpu"
        return "idle" if self._idle > self._limits.idle or now - self._begin > self._limits.wall else None

    def due(self) -> bool:
        """Whether the next check is due."""
        return time.monotonic() - self._last > _WATCH_SECONDS


def _watch(sample: Sample, out: int | None, limits: Limits) -> tuple[bytes, str | None]:
    """Collect `out` until the sample ends. Returns the data, and the exceeded limit if it must be stopped."""
    data, poll, meter, news = bytearray(), select.poll(), _Meter(limits), False
    poll.register(0, 0)  # reports only that it was closed
    for fd in (sample.report_fd, *(() if out is None else (out,))):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll(_WATCH_SECONDS * 1000):
            if fd == 0:
                sample.end()
                sample.spaces.after()
                os._exit(0)  # the parent process is gone
            block = os.read(fd, _BLOCK)
            if fd == out:
                data += block
                news = True
                if not block:
                    poll.unregister(fd)
            elif block:
                sample.report += block
            else:
                return bytes(data), None
        if len(data) > limits.output:
            return bytes(data), "output"
        if meter.due():
            if why := meter.exceeded(news):
                return bytes(data), why
            news = False


def _rest(out: int, limits: Limits) -> bytes:
    """Read the rest of a pipe without writers, up to the limit, and close it."""
    data = bytearray()
    while len(data) <= limits.output and (block := os.read(out, _BLOCK)):
        data += block
    os.close(out)
    return bytes(data)


def _fault(stage: str, error: Exception) -> NoReturn:
    """Report why this worker cannot continue, and exit."""
    _reply({"ready": False, "stage": stage, "error": str(error), "errno": getattr(error, "errno", None)})
    os._exit(1)


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _read_frame() -> bytes | None:
    """The next frame; None at the end of the input."""
    try:
        (size,) = struct.unpack(">I", read_exactly(0, 4))
    except EOFError:
        return None
    return read_exactly(0, size)


def _reply(header: dict[str, Any], results: bytes = b"") -> None:
    text = json.dumps({**header, "size": len(results)}).encode()
    view = memoryview(struct.pack(">I", len(text)) + text + results)
    while view:
        view = view[os.write(1, view) :]
