"""Jobs for a sandbox and their outcomes. Pure functions and data; starts no process.

Verdicts are computed outside the sandbox from the returned data. The status `harness` means that nothing was learned
about the candidate: a fault of the harness is never attributed to the candidate.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trimoe.sandbox.inside import wire
from trimoe.sandbox.inside.limits import Limits

_LONGEST_MESSAGE = 1 << 14  # bytes
Status = Literal["ok", "wrong", "error", "timeout", "memory", "harness"]


@dataclass(frozen=True)
class Calls:
    """Run Python source, then call `entry` (an expression) once per argument tuple. Expected values stay outside.

    A result whose encoded form exceeds `digest_over` bytes is returned as its SHA-256.
    """

    source: str
    entry: str
    args: tuple[tuple[Any, ...], ...]
    limits: Limits = field(default_factory=Limits)
    digest_over: int = 1 << 30


@dataclass(frozen=True)
class Check:
    """Run a data set's own test code against Python source in another process.

    `setup` and `tests` come from the data set; in `tests`, `names` refer to the candidate's functions and classes.
    """

    source: str
    setup: str
    tests: str
    names: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Program:
    """Write files into an empty folder, then run commands in it until one fails."""

    files: Mapping[str, str]
    steps: tuple[tuple[str, ...], ...]
    env: Mapping[str, str]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Compare:
    """Compare encoded results with encoded expected values, in a process of their own.

    `results` were written by a candidate, who chooses their size and cost. `rule` is a name in `inside.compare.RULES`,
    `settings` has one value per pair for it.
    """

    results: tuple[bytes, ...]
    expected: tuple[bytes, ...]
    rule: str
    settings: tuple[Any, ...]
    limits: Limits = field(default_factory=Limits)


Job = Calls | Check | Program | Compare


@dataclass(frozen=True)
class Step:
    """One command of a program: its exit status (negative: the signal that ended it), and excerpts of its output.

    `out` is the end of standard output, `err` the start of standard error, `cpu` is in seconds.
    """

    exit: int
    out: str = ""
    err: str = ""
    cpu: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job. `steps` are the commands of a `Program`. `lines` are the encoded values of `Calls`, or
    one JSON object per pair of a `Compare`: `same`, and in the last one `shown` or `unreadable`.

    ok: all calls returned, the tests passed, or every command exited with 0. wrong: the data set's tests failed.
    error: the candidate raised, exited early, or wrote too much output. timeout and memory: it exceeded that limit.
    harness: the harness failed.
    """

    status: Status
    detail: str = ""
    lines: tuple[bytes, ...] = ()
    steps: tuple[Step, ...] = ()
    cpu: float = 0.0

    def values(self) -> list[Any]:
        """The decoded results of a trusted program. Raises `ValueError` for malformed ones.

        Results of a candidate are compared by `Compare` instead: here, decoding has no limit of time or memory.
        """
        try:
            return [wire.decode(json.loads(line)["value"]) for line in self.lines]
        except (KeyError, TypeError, RecursionError) as exc:
            raise ValueError(f"a malformed result: {type(exc).__name__}") from exc


def data_of(job: Job) -> tuple[str, list[bytes]]:
    """The kind of a job and the data of each of its samples, in the form the worker expects."""
    match job:
        case Calls():
            args = [wire.encode(list(one)) for one in job.args]
            body: dict[str, Any] = {
                "source": job.source,
                "entry": job.entry,
                "args": args,
                "digest_over": job.digest_over,
            }
            return "calls", [wire.dumps(body)]
        case Check():
            tests = {"setup": job.setup, "tests": job.tests, "names": list(job.names)}
            return "check", [wire.dumps({"source": job.source}), wire.dumps(tests)]
        case Program():
            body = {"files": dict(job.files), "steps": [list(step) for step in job.steps], "env": dict(job.env)}
            return "program", [wire.dumps(body)]
        case Compare():
            results, expected = ([line.decode("latin-1") for line in lines] for lines in (job.results, job.expected))
            pairs = {"results": results, "expected": expected, "settings": list(job.settings)}
            return "compare", [wire.dumps({"rule": job.rule, **pairs})]


def read(job: Job, header: Mapping[str, Any], results: bytes) -> Outcome:
    """The outcome of a job, from its worker's report."""
    faults = [step["fault"] for step in [*header["steps"], *header.get("candidate", [])] if "fault" in step]
    if faults:
        return Outcome("harness", faults[0])
    cpu = sum(step["cpu"] for step in [*header["steps"], *header.get("candidate", [])])
    if len(results) > job.limits.output and not header["stopped"]:
        header = {**header, "stopped": "output"}
    if header["stopped"]:
        status, detail = _STOPPED[header["stopped"]]
        return Outcome(status, detail.format(limits=job.limits), cpu=cpu)
    if not header["steps"]:
        return Outcome("harness", "the sandbox ended before it reported this candidate")
    match job:
        case Calls():
            return _calls(job, header["steps"][0], results, cpu)
        case Check():
            return _check(job, header, results, cpu)
        case Program():
            return _program(job, header["steps"], cpu)
        case Compare():
            return _compared(job, header["steps"][0], results, cpu)


_STOPPED: dict[str, tuple[Status, str]] = {
    "idle": ("timeout", "did nothing for {limits.idle:g} s"),
    "cpu": ("timeout", "more CPU time than allowed ({limits.call_cpu:g} s for a call, {limits.cpu:g} s in all)"),
    "memory": ("memory", "more than {limits.memory:,} bytes of memory"),
    "output": ("error", "more than {limits.output:,} bytes of results"),
}


def _calls(job: Calls, step: Mapping[str, Any], results: bytes, cpu: float) -> Outcome:
    lines = results.splitlines()
    last: Any = None
    if lines and not lines[-1].startswith((b'{"value":', b'{"digest":')):
        last = _parsed(lines.pop())
    for key, what in (("load", "while loading"), ("raised", f"in call {len(lines) + 1}")):
        if isinstance(last, dict) and last.keys() == {key}:
            return _raised(last[key], what, tuple(lines), cpu)
    if ended := _ended(job, step):
        return Outcome(*ended, tuple(lines), cpu=cpu)
    if last is not None or len(lines) != len(job.args):
        return Outcome("error", f"ended early, with exit status {step['exit']}", tuple(lines), cpu=cpu)
    return Outcome("ok", lines=tuple(lines), cpu=cpu)


def _compared(job: Compare, step: Mapping[str, Any], results: bytes, cpu: float) -> Outcome:
    lines = tuple(results.splitlines())
    if ended := _ended(job, step):
        return Outcome(*ended, cpu=cpu)
    if step["exit"] or not lines or (len(lines) < len(job.results) and b'"same":true' in lines[-1]):
        return Outcome("error", f"the comparison ended with exit status {step['exit']}", cpu=cpu)
    return Outcome("ok", lines=lines, cpu=cpu)


def _check(job: Check, header: Mapping[str, Any], results: bytes, cpu: float) -> Outcome:
    answer = _parsed(results)
    if not isinstance(answer, dict):
        ended = _ended(job, header["steps"][0])
        return Outcome(*ended, cpu=cpu) if ended else Outcome("harness", "the checker ended without a verdict")
    verdict, detail = answer["verdict"], printable(answer["detail"])
    if verdict == "lost":
        (step,) = header["candidate"] or [{"exit": 0}]
        ended = _ended(job, step)
        return Outcome(*(ended or ("error", f"ended early, with exit status {step['exit']}: {detail}")), cpu=cpu)
    if verdict == "raised":
        kind, _, text = detail.partition(": ")
        return _raised([kind, text], "during the tests", (), cpu)
    status: Status = {"ok": "ok", "wrong": "wrong"}.get(verdict, "harness")  # type: ignore[assignment]
    return Outcome(status, detail, cpu=cpu)


def _program(job: Program, reports: list[Mapping[str, Any]], cpu: float) -> Outcome:
    steps = tuple(Step(r["exit"], r["out"], r["err"], r["cpu"]) for r in reports)
    last = reports[-1]
    if stopped := last["stopped"]:
        status, detail = _STOPPED[stopped]
        return Outcome(status, detail.format(limits=job.limits), steps=steps, cpu=cpu)
    if ended := _ended(job, last):
        return Outcome(*ended, steps=steps, cpu=cpu)
    if last["exit"]:
        return Outcome("error", f"exit status {last['exit']}", steps=steps, cpu=cpu)
    if len(steps) != len(job.steps):
        return Outcome("harness", "a command was not run", steps=steps, cpu=cpu)
    return Outcome("ok", steps=steps, cpu=cpu)


def _ended(job: Job, step: Mapping[str, Any]) -> tuple[Status, str] | None:
    """The meaning of the signal that ended a process; None if it exited by itself."""
    if step["exit"] >= 0:
        return None
    number = -step["exit"]
    # The hard limit sends SIGKILL to a candidate that ignores SIGXCPU.
    if number == signal.SIGXCPU or (number == signal.SIGKILL and step["cpu"] >= job.limits.cpu):
        return "timeout", f"more than {job.limits.cpu:g} s of CPU"
    return "error", f"killed by {signal.Signals(number).name}"


def _raised(told: Any, what: str, lines: tuple[bytes, ...], cpu: float) -> Outcome:
    kind, text = map(str, told) if isinstance(told, list) and len(told) == 2 else ("?", "malformed")
    status: Status = "memory" if kind == "MemoryError" else "error"
    return Outcome(status, printable(f"{kind[:80]} {what}: {text[:300]}".rstrip(": ")), lines, cpu=cpu)


def printable(text: str) -> str:
    """Text that can be stored and printed anywhere: lone surrogates and NUL are escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", r"\x00")


def _parsed(line: bytes) -> Any:
    """A message about an exception or a verdict. Ours are short; a long line is not parsed at all."""
    if len(line) > _LONGEST_MESSAGE:
        return "malformed"
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return "malformed"
