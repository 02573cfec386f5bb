"""Comparison of candidates' results with expected values, in samples of their own.

Invariants: results are only compared as bytes in this process. Whatever they cost to decode or compare counts against
the candidate, under limits.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimoe.bench.bench import Verdict
from trimoe.sandbox import Compare, Job, Limits, Outcome
from trimoe.sandbox.inside import wire

LIMITS = Limits(cpu=60, call_cpu=60, memory=4 << 30)


@dataclass(frozen=True)
class Due:
    """What a candidate's results must equal: the encoded values, a rule of `inside.compare`, and its settings."""

    lines: tuple[bytes, ...]
    rule: str
    settings: tuple[Any, ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any], rule: str) -> "Due":
        """From plain values."""
        return cls(tuple(wire.dumps({"value": wire.encode(value)}) for value in values), rule)


@dataclass(frozen=True)
class Difference:
    """The first pair that differs: its place, and both values shortened, or why the comparison failed."""

    place: int
    got: str = ""
    expected: str = ""
    unreadable: str = ""
    fault: str = ""

    def verdict(self, source: str, detail: str) -> Verdict:
        """Wrong, or a code error if the result could not be compared; not scored if the harness failed."""
        if self.fault:
            return Verdict(None, "harness error", source, self.fault)
        if self.unreadable:
            return Verdict(False, "code error", source, f"its result cannot be compared: {self.unreadable}")
        return Verdict(False, "wrong", source, detail)


def comparison(lines: Sequence[bytes], due: Due) -> tuple[Compare | None, list[int]]:
    """The job that compares results with expected values, and the place of each of its pairs.

    Equal texts are equal values and need no job, except NaN, which equals nothing, and rules that ignore the values.
    """
    places = [
        place
        for place, (line, other) in enumerate(zip(lines, due.lines, strict=False))
        if line != other or due.rule == "root" or b"nan" in line
    ]
    if not places:
        return None, places
    settings = due.settings or (None,) * len(due.lines)
    chosen = [(lines[place], due.lines[place], settings[place]) for place in places]
    results, expected, used = (tuple(column) for column in zip(*chosen, strict=True))
    return Compare(results, expected, due.rule, used, LIMITS), places


def difference(outcome: Outcome, places: Sequence[int]) -> Difference | None:
    """The first difference that a comparison found."""
    if outcome.status == "harness":
        return Difference(places[0], fault=outcome.detail)
    if outcome.status != "ok":
        return Difference(places[0], unreadable=f"{outcome.status}: {outcome.detail}")
    last = json.loads(outcome.lines[-1])
    place = places[len(outcome.lines) - 1]
    if last["same"]:
        return None
    if "unreadable" in last:
        return Difference(place, unreadable=last["unreadable"])
    return Difference(place, *last["shown"])


def differences(run: Any, results: Sequence[Sequence[bytes]], dues: Sequence[Due]) -> list[Difference | None]:
    """The first difference of each candidate. `run` runs jobs: `run_jobs`, or a sandbox's method."""
    prepared = [comparison(lines, due) for lines, due in zip(results, dues, strict=True)]
    jobs: list[Job] = [job for job, _ in prepared if job is not None]
    outcomes = iter(run(jobs) if jobs else [])
    return [difference(next(outcomes), places) if job is not None else None for job, places in prepared]
