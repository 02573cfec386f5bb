"""Runs generated Python functions in child processes with limits.

Contained: each candidate runs in its own forked process, in a session and an empty scratch folder of its own, with a
clean environment, no inherited files, limits on CPU time, address space, file size, open files, processes (none may be
started) and core dumps, a wall clock, and bounded output; it and whatever it left behind is killed afterwards. Started
by root, it becomes `nobody` first. Expected values are never in the child: a candidate cannot pass by reading them,
by overloading equality, or by printing a verdict. A candidate that breaks the runner is a harness error, not a score.

Not contained: the network, reading of files that everyone may read, and, when not started by root, reading (and
signalling, within its user) whatever the user may. A memory limit holds per process. That is enough for the replies of
the bundled model, not for code you have reason to fear.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Job:
    """A candidate: source text, the function to call, and one call per argument (each a Python literal)."""

    source: str
    entry: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """`results` holds the repr of each call's value when `status` is ok. `harness` means: nothing was learned."""

    status: Literal["ok", "error", "timeout", "harness"]
    results: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Limits:
    """Per candidate. Seconds and bytes."""

    cpu: float = 2
    wall: float = 15  # generous: only sleepers should meet it, even on a busy machine
    memory: int = 512 << 20
    file: int = 1 << 20
    output: int = 256 << 10


def run_jobs(jobs: Sequence[Job], limits: Limits | None = None) -> list[Outcome]:
    """Run every job, in order; one outcome each, whatever the candidates do."""
    if not jobs:
        return []
    limits = limits or Limits()
    request = json.dumps({"jobs": [asdict(job) for job in jobs], "limits": asdict(limits)})
    lines = _child(request, timeout=20 + len(jobs) * (limits.wall + 2))
    outcomes = [_outcome(line, job) for line, job in zip(lines, jobs, strict=False)]
    missing = Outcome("harness", detail="the sandbox ended before it reported this candidate")
    return outcomes + [missing] * (len(jobs) - len(outcomes))


def _child(request: str, timeout: float) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="trimoe-sandbox-") as scratch:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=scratch,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            start_new_session=True,
            text=True,
        )
        try:
            output, _ = process.communicate(request, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        finally:
            _end(process)
    return output.splitlines()


def _end(process: "subprocess.Popen[str]") -> None:
    """Also on an exception here (Ctrl-C): nothing of the child's group may live on."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the usual case: the whole group has ended
    process.wait()


def _outcome(line: str, job: Job) -> Outcome:
    try:
        record = json.loads(line)
        status, results = record["status"], tuple(record.get("results", ()))
    except (ValueError, KeyError, TypeError):
        return Outcome("harness", detail=f"unreadable report: {line[:100]}")
    if status not in ("ok", "error", "timeout", "harness") or (status == "ok" and len(results) != len(job.args)):
        return Outcome("error", detail="the reply wrote to the sandbox's report")
    return Outcome(status, results, str(record.get("detail", "")))
