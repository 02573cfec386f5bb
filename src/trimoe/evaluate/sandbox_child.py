"""The child of sandbox.py: forks once per candidate, limits the fork, runs it, reports the repr of its results.

Run as `python -I sandbox_child.py`; standard library only, never imported by trimoe. Reads one JSON document from
standard input, writes one JSON line per candidate to standard output. Knows the arguments, not the expected values.
"""

import ast
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_NOBODY = 65534
_COMMON = (
    *("bisect", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *(
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "operator",
        "random",
        "re",
        "statistics",
        "string",
        "textwrap",
        "threading",
    ),
    "typing",
)


def main() -> None:
    """One fork per job, in order."""
    request = json.load(sys.stdin)
    for name in _COMMON:
        importlib.import_module(name)  # before the forks: once, and while the installation can still be read
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of a candidate come back to us
    for number, job in enumerate(request["jobs"]):
        sys.stdout.write(json.dumps(_run(job, request["limits"], Path(f"job-{number}"))) + "\n")
        sys.stdout.flush()


def _run(job: dict[str, Any], limits: dict[str, float], scratch: Path) -> dict[str, Any]:
    scratch.mkdir()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _candidate(job, limits, scratch, writer)
    os.close(writer)
    data, stopped = _read(reader, time.monotonic() + limits["wall"], int(limits["output"]))
    os.close(reader)
    status, used = _reap(pid, kill=stopped is not None)
    if stopped is not None:
        return stopped
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # SIGKILL is the hard limit's, for a candidate that ignores SIGXCPU
        if number == signal.SIGXCPU or (number == signal.SIGKILL and used >= limits["cpu"]):
            return {"status": "timeout", "detail": f"more than {limits['cpu']:g} s of CPU"}
        return {"status": "error", "detail": f"killed by {signal.Signals(number).name}"}
    try:
        answer = json.loads(data)
        return {
            "status": str(answer["status"]),
            "results": list(map(str, answer.get("results", []))),
            "detail": str(answer.get("detail", "")),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"status": "error", "detail": f"ended early with exit status {os.waitstatus_to_exitcode(status)}"}


def _read(reader: int, deadline: float, most: int) -> tuple[bytes, dict[str, Any] | None]:
    """Everything until end of file, or why reading stopped."""
    data = b""
    while len(data) <= most:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return data, {"status": "timeout", "detail": "more wall time than allowed"}
        block = os.read(reader, 65536)
        if not block:
            return data, None
        data += block
    return data, {"status": "error", "detail": f"more than {most} bytes of results"}


def _reap(pid: int, *, kill: bool) -> tuple[int, float]:
    """End the candidate and everything it started; returns the candidate's wait status and CPU seconds."""
    deadline = time.monotonic() + (0 if kill else 1.0)  # a normal exit needs a moment after its pipe closes
    done, status, usage = os.wait4(pid, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.001)
        done, status, usage = os.wait4(pid, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # the group is the candidate's own: it called setsid
    if not done:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    while orphans := children.read_text().split() if children.exists() else []:
        for orphan in map(int, orphans):
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)
    return status, usage.ru_utime + usage.ru_stime


def _candidate(job: dict[str, Any], limits: dict[str, float], scratch: Path, writer: int) -> None:
    """Never returns. Confines itself, runs the source, writes the results."""
    try:
        os.setsid()
        os.chdir(scratch)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.dup2(writer, 3)
        os.closerange(4, 1024)
        memory, cpu = int(limits["memory"]), int(limits["cpu"])
        wanted = {
            resource.RLIMIT_CPU: cpu,
            resource.RLIMIT_AS: memory,
            resource.RLIMIT_FSIZE: int(limits["file"]),
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: 64,
        }
        if os.geteuid() == 0:  # root is exempt from RLIMIT_NPROC and may read everything
            os.chown(".", _NOBODY, _NOBODY)
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
        for kind, value in wanted.items():
            # a soft CPU limit below the hard one: SIGXCPU tells a timeout from any other kill
            resource.setrlimit(kind, (value, value + 1 if kind == resource.RLIMIT_CPU else value))
    except BaseException as exc:  # noqa: BLE001 this process must end in _finish, whatever happens
        _finish({"status": "harness", "detail": f"could not confine: {exc!r}"[:300]})
    try:
        space: dict[str, Any] = {"__name__": "reply"}
        exec(compile(job["source"], "reply.py", "exec"), space)
        results = [repr(space[job["entry"]](ast.literal_eval(arg))) for arg in job["args"]]
        answer = {"status": "ok", "results": results}
    except ModuleNotFoundError as exc:
        # a module of the standard library that `nobody` may not read is our fault, any other is the candidate's
        ours = exc.name is not None and exc.name.partition(".")[0] in sys.stdlib_module_names
        answer = {"status": "harness" if ours else "error", "detail": f"ModuleNotFoundError: {exc}"[:300]}
    except BaseException as exc:  # noqa: BLE001 the candidate may raise anything, SystemExit too
        answer = {"status": "error", "detail": f"{type(exc).__name__}: {_text(exc)}"[:300]}
    _finish(answer)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException:  # noqa: BLE001 the candidate's own __str__
        return "unprintable"


def _finish(answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(3, data) :]
    os._exit(0)


if __name__ == "__main__":
    main()
