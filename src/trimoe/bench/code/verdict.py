"""Verdicts of a bench from the outcomes of a sandbox."""

from collections.abc import Sequence

from trimoe.bench.bench import Cause, Doc, Verdict
from trimoe.sandbox import Outcome

Pairs = Sequence[tuple[str, Doc]]
"""Source to run, and its row."""

_CAUSES: dict[str, tuple[bool | None, Cause]] = {
    "ok": (True, "correct"),
    "wrong": (False, "wrong"),
    "error": (False, "code error"),
    "memory": (False, "code error"),
    "timeout": (False, "code timeout"),
    "harness": (None, "harness error"),
}


def verdict(outcome: Outcome, source: str) -> Verdict:
    """The verdict for an outcome whose results need no further comparison."""
    correct, cause = _CAUSES[outcome.status]
    detail = f"memory: {outcome.detail}" if outcome.status == "memory" else outcome.detail
    return Verdict(correct, cause, source, detail)
