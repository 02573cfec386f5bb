"""HumanEval+ as evalplus scores it: results for every base and plus input equal those of the canonical solution.

Tolerances are those of evalplus 0.3.1 (`sandbox.inside.compare`), with two corrections. Its special case for
HumanEval/32 (any root of the polynomial is right) skips the line that counts an input as passed, so it fails every
answer; here the root is checked and counted. And a candidate never sees arguments that an earlier call modified. Time
is measured in CPU seconds, so a busy machine causes no failures: the limit per call is 4 s, or four times the total of
the canonical solution.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Verdict
from trimoe.bench.code.compare import Difference, Due, differences
from trimoe.bench.code.environment import environments
from trimoe.bench.code.oracle import LIMITS, Expected, expected
from trimoe.bench.code.verdict import verdict
from trimoe.errors import BadInput
from trimoe.io.expand import lines, opened_text
from trimoe.sandbox import Calls, Outcome, Sandbox
from trimoe.sandbox.inside.compare import shown

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
        with opened_text(path) as handle:
            rows = [json.loads(line) for line in lines(handle) if line.strip()]
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
    dues = [_due(problem, known[problem.task_id].lines) for _, problem in pairs]
    plain = [_without_digests(outcome.lines, due.lines) for outcome, due in zip(outcomes, dues, strict=True)]
    found = differences(sandbox.run, plain, dues)
    together = zip(pairs, dues, outcomes, found, strict=True)
    return [_verdict(*pair, due, outcome, one, sandbox) for pair, due, outcome, one in together]


def _due(problem: Problem, lines: tuple[bytes, ...]) -> Due:
    if problem.task_id == _ANY_ROOT:
        return Due(lines, "root", tuple(arguments[0] for arguments in problem.inputs))
    return Due(lines, "evalplus", (problem.atol,) * len(lines))


def _without_digests(lines: tuple[bytes, ...], due: tuple[bytes, ...]) -> list[bytes]:
    """The lines with the expected one in place of each pair that needs the results in full."""
    return [other if _is_digest(line, other) else line for line, other in zip(lines, due, strict=False)]


def _is_digest(line: bytes, due: bytes) -> bool:
    return line != due and (b'"digest"' in line[:12] or b'"digest"' in due[:12])


def _canonical(problem: Problem, inputs: tuple[tuple[Any, ...], ...], digest_over: int = _DIGEST_OVER) -> Calls:
    return Calls(problem.prompt + problem.canonical_solution, problem.entry_point, inputs, LIMITS, digest_over)


def _job(source: str, problem: Problem, reference: Expected) -> Calls:
    call = max(ENVIRONMENT.call_seconds, _CPU_FACTOR * reference.cpu)
    limits = replace(ENVIRONMENT.limits, cpu=max(ENVIRONMENT.seconds, call), call_cpu=call)
    return Calls(ENVIRONMENT.program(source), problem.entry_point, problem.inputs, limits, _DIGEST_OVER)


def _verdict(
    source: str, problem: Problem, due: Due, outcome: Outcome, found: Difference | None, sandbox: Sandbox
) -> Verdict:
    """Compare the results, even of a candidate that failed later: the first fault is the cause."""
    for place, pair in enumerate(zip(outcome.lines, due.lines, strict=False)):
        if found is not None and found.place <= place:
            break
        if _is_digest(*pair) and (full := _in_full(source, problem, place, sandbox)) is not None:
            found = full
            break
    if found is None:
        return verdict(outcome, source)
    return found.verdict(source, _shown(problem, found))


def _in_full(source: str, problem: Problem, place: int, sandbox: Sandbox) -> Difference | None:
    """Compare one input whose hashes differ. The results may still be equal (3 and 3.0) or close."""
    inputs = (problem.inputs[place],)
    calls = [Calls(source, problem.entry_point, inputs, LIMITS), _canonical(problem, inputs, LIMITS.output)]
    ours, theirs = sandbox.run(calls)
    if ours.status != "ok" or theirs.status != "ok":
        return Difference(place, unreadable=f"ended differently when run again: {ours.detail or theirs.detail}")
    (found,) = differences(sandbox.run, [ours.lines], [Due(theirs.lines, "evalplus", (problem.atol,))])
    return None if found is None else replace(found, place=place)


def _shown(problem: Problem, found: Difference) -> str:
    base, place = len(problem.base_input), found.place
    where = f"base input {place + 1}" if place < base else f"plus input {place + 1 - base}"
    call = f"{problem.entry_point}{shown(problem.inputs[place])}"
    return f"{where}: {call} gave {found.got[:60]}, expected {found.expected[:60]}"


_ANY_ROOT = "HumanEval/32"
