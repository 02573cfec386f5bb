"""HumanEval+ as evalplus scores it: results for every base and plus input equal those of the canonical solution.

Tolerances are those of evalplus 0.3.1 (`compare.same_as_evalplus`), with two corrections. Its special case for
HumanEval/32 (any root of the polynomial is right) skips the line that counts an input as passed, so it fails every
answer; here the root is checked and counted. And a candidate never sees arguments that an earlier call modified. Time
is measured in CPU seconds, so a busy machine causes no failures: the limit per call is 4 s, or four times the total of
the canonical solution.
"""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Verdict
from trimoe.bench.code.compare import same_as_evalplus, shown
from trimoe.bench.code.environment import environments
from trimoe.bench.code.oracle import LIMITS, Expected, expected
from trimoe.bench.code.verdict import verdict
from trimoe.errors import BadInput
from trimoe.sandbox import Calls, Outcome, Sandbox
from trimoe.sandbox.inside import wire

ENVIRONMENT = environments()["evalplus"]
_CPU_FACTOR = 4.0  # times the canonical solution
_DIGEST_OVER = 1 << 16  # bytes; the results of two problems are 260 MB of text


@dataclass(frozen=True)
class Problem:
    """One row of HumanEvalPlus.jsonl."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    base_input: tuple[tuple[Any, ...], ...]
    plus_input: tuple[tuple[Any, ...], ...]
    atol: float

    @property
    def inputs(self) -> tuple[tuple[Any, ...], ...]:
        """Base inputs, then plus inputs."""
        return self.base_input + self.plus_input


def problems(path: Path) -> dict[str, Problem]:
    """The problems of a HumanEvalPlus.jsonl or .jsonl.gz by task id. Raises `BadInput`."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as handle:
            rows = [json.loads(line) for line in handle if line.strip()]
        found = [_problem(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BadInput(
            f"{path} has no evalplus problems",
            expected="HumanEvalPlus.jsonl.gz of an evalplus release",
            actual=repr(exc)[:200],
            remedy="download the file again",
        ) from exc
    return {problem.task_id: problem for problem in found}


def _problem(row: dict[str, Any]) -> Problem:
    base, plus = (tuple(tuple(one) for one in row[key]) for key in ("base_input", "plus_input"))
    texts = {name: str(row[name]) for name in ("task_id", "prompt", "entry_point", "canonical_solution")}
    return Problem(base_input=base, plus_input=plus, atol=float(row["atol"]), **texts)


def score(
    pairs: Sequence[tuple[str, Problem]], sandbox: Sandbox | None = None, cache: Path | None = None
) -> list[Verdict]:
    """One verdict per (complete source, problem): correct if every base and plus input gives the expected result."""
    if sandbox is None:
        with Sandbox() as fresh:
            return score(pairs, fresh, cache)
    asked = list({problem.task_id: problem for _, problem in pairs}.values())
    known = dict(
        zip((p.task_id for p in asked), expected([_canonical(p, p.inputs) for p in asked], sandbox, cache), strict=True)
    )
    outcomes = sandbox.run([_job(source, problem, known[problem.task_id]) for source, problem in pairs])
    return [_verdict(s, p, known[p.task_id], o, sandbox) for (s, p), o in zip(pairs, outcomes, strict=True)]


def _canonical(problem: Problem, inputs: tuple[tuple[Any, ...], ...], digest_over: int = _DIGEST_OVER) -> Calls:
    return Calls(problem.prompt + problem.canonical_solution, problem.entry_point, inputs, LIMITS, digest_over)


def _job(source: str, problem: Problem, reference: Expected) -> Calls:
    call = max(ENVIRONMENT.call_seconds, _CPU_FACTOR * reference.cpu)
    limits = replace(ENVIRONMENT.limits, cpu=max(ENVIRONMENT.seconds, call), call_cpu=call)
    return Calls(ENVIRONMENT.program(source), problem.entry_point, problem.inputs, limits, _DIGEST_OVER)


def _verdict(source: str, problem: Problem, reference: Expected, outcome: Outcome, sandbox: Sandbox) -> Verdict:
    """Compare the results, even of a candidate that failed later: the first fault is the cause."""
    special = _SPECIAL.get(problem.task_id)
    for place, (line, due) in enumerate(zip(outcome.lines, reference.lines, strict=False)):
        if line == due and special is None and b"nan" not in line:
            continue  # equal texts are equal values
        try:
            if b'"digest"' in line[:12] or b'"digest"' in due[:12]:
                result, wanted = _in_full(source, problem, place, sandbox)
            else:
                result, wanted = _value(line), _value(due)
        except ValueError as exc:
            return Verdict(False, "code error", source, str(exc))
        arguments = problem.inputs[place]
        if not (special(arguments, result) if special else same_as_evalplus(result, wanted, problem.atol)):
            return Verdict(False, "wrong", source, _shown(problem, place, result, wanted))
    return verdict(outcome, source)


def _value(line: bytes) -> Any:
    """The value of a line. Raises `ValueError` if the candidate wrote something else."""
    try:
        return wire.decode(json.loads(line)["value"])
    except (KeyError, TypeError, RecursionError) as exc:
        raise ValueError(f"a malformed result: {type(exc).__name__}") from exc


def _in_full(source: str, problem: Problem, place: int, sandbox: Sandbox) -> tuple[Any, Any]:
    """Result and expected result of one input whose hashes differ. They may still be equal (3 and 3.0) or close."""
    inputs = (problem.inputs[place],)
    calls = [Calls(source, problem.entry_point, inputs, LIMITS), _canonical(problem, inputs, LIMITS.output)]
    ours, theirs = sandbox.run(calls)
    if ours.status != "ok" or theirs.status != "ok":
        raise ValueError(f"ended differently when run again: {ours.detail or theirs.detail}")
    return ours.values()[0], theirs.values()[0]


def _shown(problem: Problem, place: int, result: Any, due: Any) -> str:
    base = len(problem.base_input)
    where = f"base input {place + 1}" if place < base else f"plus input {place + 1 - base}"
    call = f"{problem.entry_point}{shown(problem.inputs[place])}"
    return f"{where}: {call} gave {shown(result, 60)}, expected {shown(due, 60)}"


def _is_root(arguments: Sequence[Any], root: Any) -> bool:
    """HumanEval/32: any x with |p(x)| <= 1e-4 where p has the given coefficients, lowest first."""
    try:
        return bool(abs(sum(c * math.pow(root, i) for i, c in enumerate(arguments[0]))) <= 1e-4)
    except (TypeError, ValueError, OverflowError):
        return False


_SPECIAL: dict[str, Callable[[Sequence[Any], Any], bool]] = {"HumanEval/32": _is_root}
