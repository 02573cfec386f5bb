"""The worker: enters its place, then runs one job after the other for the process that started it.

Frames on standard input: a length (4 bytes, big endian), a JSON header, then the data of each sample of the job, whose
sizes the header gives. Frames on standard output: a length, a JSON header with "size", then that many bytes of results.
The first frame out says whether the place could be built. The end of standard input ends the worker and all in it.
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
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from trimoe.sandbox.inside import python
from trimoe.sandbox.inside.enter import enter
from trimoe.sandbox.inside.limits import Limits, resident_of, use_below
from trimoe.sandbox.inside.sample import Bare, Sample, Spaces, read_exactly, start

_WATCH_SECONDS = 0.05
_F_SETPIPE_SZ, _BLOCK = 1031, 1 << 20
_LAST_WORDS = 2.0  # seconds that a candidate which hung up has to end, so that its exit status can be told

# Loaded before the forks: what generated code imports most often.
_WARM = (
    *("array", "ast", "bisect", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "math", "operator", "queue", "random"),
    *("re", "statistics", "string", "textwrap", "threading", "traceback", "typing", "numpy"),
)


def main() -> None:
    """Read the configuration, enter, serve."""
    frame = _read_frame()
    if frame is None:
        return
    config = json.loads(frame)
    del sys.path[0]  # where this program lies
    if config["engine"] == "namespaces":
        enter(config["view"], _fault)
    sys.path += config["path"]
    try:
        spaces = Spaces(proc=config["proc"]) if config["engine"] == "namespaces" else Bare(filtered=config["filtered"])
    except OSError as exc:
        _fault("samples", exc)
    missing = [name for name in (_WARM if config["warm"] else ()) if not _imported(name)]
    gc.freeze()  # a child's collections shall not touch, and so copy, the shared pages
    _reply({"ready": True, "python": sys.version.split()[0], "missing": missing})
    while (frame := _read_frame()) is not None:
        header = json.loads(frame)
        try:
            outcome, results = _KINDS[header["kind"]](spaces, Limits(**header["limits"]), header["sizes"])
        except (OSError, EOFError) as exc:
            _fault("run", exc)  # what was read of the input is unknown: this worker is of no more use
        _reply(outcome, results)


def _calls(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Calls of a function: the lines of their results."""
    out, tell = _wide_pipe()
    sample = start(spaces, sizes[0], limits, partial(_start_calls, out=tell), (tell,))
    os.close(tell)
    data, stopped = _watch(sample, out, limits)
    sample.end()
    spaces.after()
    data += _rest(out, limits)
    return {"stopped": stopped, "steps": sample.steps()}, data


def _check(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """A dataset's tests against a candidate: the checker's verdict. Two samples, joined by two pipes."""
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
    """Files and commands: a report per command."""
    sample = start(spaces, sizes[0], limits)
    _, stopped = _watch(sample, None, limits)
    sample.end()
    spaces.after()
    return {"stopped": stopped, "steps": sample.steps()}, b""


_KINDS = {"calls": _calls, "check": _check, "program": _program}


def _start_calls(job: Any, out: int) -> NoReturn:
    _forget_ourselves()
    python.candidate_calls(job, out)


def _start_serving(job: Any, asked: int, answer: int) -> NoReturn:
    _forget_ourselves()
    python.candidate_serves(job, asked, answer)


def _start_check(job: Any, answered: int, ask: int, out: int) -> NoReturn:
    python.check(job, answered, ask, out)


def _wide_pipe() -> tuple[int, int]:
    """A pipe that holds a mebibyte, so that long results pass with fewer switches between its two ends."""
    ends = os.pipe()
    with suppress(PermissionError):  # the user has many such pipes already: the usual 64 KiB will do
        fcntl.fcntl(ends[0], _F_SETPIPE_SZ, _BLOCK)
    return ends


def _forget_ourselves() -> None:
    """Generated code shall find a plain interpreter. Tidiness: what protects is that there is nothing to find."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trimoe"]:
        del sys.modules[name]


class _Meter:
    """What a sample used, looked at every 50 ms, against its limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._shared = limits, resident_of(os.getpid())
        self._begin = self._last = time.monotonic()
        self._idle = self._cpu_at_result = 0.0

    def exceeded(self, news: bool) -> str | None:
        """Which limit is exceeded now. `news`: a result has come since the last look."""
        now, use = time.monotonic(), use_below(os.getpid(), self._shared)
        self._idle += 0.0 if use.busy else min(now - self._last, 2 * _WATCH_SECONDS)  # of a long gap nothing is known
        self._last = now
        if news:
            self._cpu_at_result = use.cpu
        if use.resident > self._limits.memory:
            return "memory"
        if use.cpu > self._limits.cpu + 1 or use.cpu - self._cpu_at_result > self._limits.call_cpu:
            return "cpu"
        return "idle" if self._idle > self._limits.idle or now - self._begin > self._limits.wall else None

    def due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() - self._last > _WATCH_SECONDS


def _watch(sample: Sample, out: int | None, limits: Limits) -> tuple[bytes, str | None]:
    """Collect `out` until the sample ends; returns it, and why the sample must be stopped if it must."""
    data, poll, meter, news = bytearray(), select.poll(), _Meter(limits), False
    poll.register(0, 0)  # only that it was closed
    for fd in (sample.report_fd, *(() if out is None else (out,))):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll(_WATCH_SECONDS * 1000):
            if fd == 0:
                sample.end()
                sample.spaces.after()
                os._exit(0)  # whoever wanted this is gone
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
    """What still lies in a pipe when all who could write to it have ended; closes it."""
    data = bytearray()
    while len(data) <= limits.output and (block := os.read(out, _BLOCK)):
        data += block
    os.close(out)
    return bytes(data)


def _fault(stage: str, error: Exception) -> NoReturn:
    """Report that this worker cannot work, and why; end."""
    _reply({"ready": False, "stage": stage, "error": str(error), "errno": getattr(error, "errno", None)})
    os._exit(1)


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _read_frame() -> bytes | None:
    """The next frame, None at the end of the input."""
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
