"""The worker: enters its place, then runs one job after the other for the process that started it.

Frames on standard input: a length (4 bytes, big endian), a JSON header, then the data of each sample of the job, whose
sizes the header gives. Frames on standard output: a length, a JSON header with "size", then that many bytes of results.
The first frame out says whether the place could be built. The end of standard input ends the worker and all in it.
"""

import gc
import importlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from trimoe.evaluate.sandbox.inside import python
from trimoe.evaluate.sandbox.inside.enter import enter
from trimoe.evaluate.sandbox.inside.limits import Limits, resident_of, use_below
from trimoe.evaluate.sandbox.inside.sample import Bare, Sample, Spaces, read_exactly, start

_WATCH_SECONDS = 0.05
_LAST_WORDS = 2.0  # seconds that a candidate which hung up has to end, so that its exit status can be told

# Loaded before the forks: what generated code imports most often.
_WARM = (
    *("array", "ast", "bisect", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "math", "operator", "queue", "random", "re"),
    *("statistics", "string", "textwrap", "threading", "traceback", "typing", "numpy"),
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
        spaces.after()
        _reply(outcome, results)


def _calls(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Calls of a function: the lines of their results."""
    out, tell = os.pipe()
    sample = start(spaces, sizes[0], limits, partial(_start_calls, out=tell), (tell,))
    os.close(tell)
    data, stopped = _watch([sample], out, limits)
    sample.end()
    os.close(out)
    return {"stopped": stopped, "steps": sample.steps()}, data


def _check(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """A dataset's tests against a candidate: the checker's verdict. Two samples, joined by a socket."""
    ours, theirs = socket.socketpair()
    out, tell = os.pipe()
    candidate = start(spaces, sizes[0], limits, partial(_start_serving, channel=theirs.fileno()), (theirs.fileno(),))
    theirs.close()
    checker = start(spaces, sizes[1], limits, partial(_start_check, channel=ours.fileno(), out=tell), (ours.fileno(), tell))
    ours.close()
    os.close(tell)
    data, stopped = _watch([checker], out, limits)
    checker.end()
    if stopped is None and b'"lost"' in data:
        _watch([candidate], None, replace(limits, wall=_LAST_WORDS))
    candidate.end()
    os.close(out)
    return {"stopped": stopped, "steps": checker.steps(), "candidate": candidate.steps()}, data


def _program(spaces: Spaces, limits: Limits, sizes: list[int]) -> tuple[dict[str, Any], bytes]:
    """Files and commands: a report per command."""
    sample = start(spaces, sizes[0], limits)
    _, stopped = _watch([sample], None, limits)
    sample.end()
    return {"stopped": stopped, "steps": sample.steps()}, b""


_KINDS = {"calls": _calls, "check": _check, "program": _program}


def _start_calls(job: Any, out: int) -> NoReturn:
    _forget_ourselves()
    python.candidate_calls(job, out)


def _start_serving(job: Any, channel: int) -> NoReturn:
    _forget_ourselves()
    python.candidate_serves(job, channel)


def _start_check(job: Any, channel: int, out: int) -> NoReturn:
    python.check(job, channel, out)


def _forget_ourselves() -> None:
    """Generated code shall find a plain interpreter. Tidiness: what protects is that there is nothing to find."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trimoe"]:
        del sys.modules[name]


def _watch(samples: Sequence[Sample], out: int | None, limits: Limits) -> tuple[bytes, str | None]:
    """Collect `out` until all samples have ended; returns it, and why they must be stopped if they must."""
    data, running = bytearray(), {sample.report_fd: sample for sample in samples}
    poll = select.poll()
    poll.register(0, 0)  # only that it was closed
    for fd in (*running, *(() if out is None else (out,))):
        poll.register(fd, select.POLLIN)
    shared, begin, measured, at_result = resident_of(os.getpid()), time.monotonic(), 0.0, 0.0
    open_out, news = out is not None, False
    while running or open_out:
        for fd, _ in poll.poll(_WATCH_SECONDS * 1000):
            if fd == 0:
                os._exit(0)  # whoever wanted this is gone
            block = os.read(fd, 1 << 16)
            if not block:
                poll.unregister(fd)
            if fd == out:
                data += block
                open_out, news = bool(block), True
            elif block:
                running[fd].report += block
            else:
                del running[fd]
        now = time.monotonic() - begin
        if len(data) > limits.output:
            return bytes(data), "output"
        if now > limits.wall:
            return bytes(data), "wall"
        if now - measured > _WATCH_SECONDS:
            use, measured = use_below(os.getpid(), shared), now
            at_result, news = (use.cpu if news else at_result), False
            if use.resident > limits.memory:
                return bytes(data), "memory"
            if use.cpu > limits.cpu + 1 or use.cpu - at_result > limits.call_cpu:
                return bytes(data), "cpu"
    return bytes(data), None


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
