"""MATH-500: math-verify compares the whole reply with the gold solution."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from trimoe.bench.bench import Doc, Verdict, verbatim
from trimoe.bench.formulas import LONGEST, same
from trimoe.bench.rows import Row, Stated, View, each, spec_bench
from trimoe.bench.stated import formula

TIMEOUT, LONGER = 5, 30  # seconds: math-verify's default, and the limit of the second try


def view(row: Row) -> View:
    """A row. The gold is the whole solution: `answer` differs in normalisation in 15 of the first 100 recorded rows."""
    return View({"problem": row["problem"]}, {"solution": row["solution"]}, row["solution"])


def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
    """One verdict per reply. If math-verify cannot read the gold solution, the row is not scored."""
    return [_verdict(reply, doc.check["solution"]) for reply, doc in pairs]


def _verdict(reply: str, solution: str) -> Verdict:
    gold = _patiently(_parse, solution)
    if not gold:
        return Verdict(None, "harness error", detail="math-verify finds no answer in the gold solution")
    answer = _patiently(_parse, reply)
    if answer is None:
        return Verdict(False, "wrong", detail=f"math-verify did not read the reply within {LONGER} s")
    if not answer:
        return Verdict(False, "extraction failed")
    results = [_patiently(_equal, expected, found) for expected in gold for found in answer]
    if any(results):
        return Verdict(True, "correct", str(answer[-1]))
    slow = f"math-verify did not compare within {LONGER} s" if None in results else ""
    return Verdict(False, "wrong", str(answer[-1]), slow)


def _patiently(step: Callable[..., Any], *arguments: Any) -> Any:
    """The result of one step of math-verify, or None if the longer limit was not enough, either.

    Its limits are alarms, which only the main thread can set; other threads have no limit.
    """
    from math_verify.errors import TimeoutException

    main = threading.current_thread() is threading.main_thread()
    for seconds in (TIMEOUT, LONGER):
        try:
            return step(*arguments, seconds if main else None)
        except TimeoutException:
            continue
    return None


def _parse(text: str, seconds: int | None) -> Any:
    from math_verify import parse

    try:
        return parse(text, parsing_timeout=seconds, raise_on_error=True)
    except Exception:  # noqa: BLE001 sympy raises anything; lm-eval also counts it as "found nothing"
        return []


def _equal(expected: Any, found: Any, seconds: int | None) -> bool:
    from math_verify import verify

    try:
        return bool(verify(expected, found, timeout_seconds=seconds, raise_on_error=True))
    except Exception:  # noqa: BLE001 sympy raises anything; not comparable is not equal
        return False


def own_reading(reply: str, solution: str) -> bool | None:
    """Whether the final answer of a reply is the gold solution's; None if either has none that can be compared."""
    stated, gold = formula(reply), formula(solution)
    if stated is None or not gold:
        return None
    return same(stated, gold, _by_math_verify) if stated else False


def _by_math_verify(stated: str, gold: str) -> bool:
    ours, theirs = (_patiently(_parse, rf"$\boxed{{{text}}}$") for text in (stated, gold))
    return any(_patiently(_equal, expected, found) for expected in theirs or () for found in ours or ())


def opinion(reply: str, doc: Doc, verdict: Verdict) -> str:
    """Where our reading of the final answer gives another verdict than math-verify's of the whole reply."""
    right = own_reading(reply, doc.check["solution"])
    if right in (None, verdict.correct):
        return ""
    stated = formula(reply)
    shown = "its last box is not closed" if stated is False else f"its final answer is {str(stated)[:60]}"
    return f"{shown}, which is {'right' if right else 'wrong'}"


def score_stated(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
    """One verdict per reply from our reading of its final answer alone."""
    return [_stated_verdict(reply, doc.check["solution"]) for reply, doc in pairs]


def _stated_verdict(reply: str, solution: str) -> Verdict:
    if not formula(solution):
        return Verdict(None, "harness error", detail="the gold solution has no final answer")
    stated = formula(reply)
    if not stated:
        return Verdict(False, "extraction failed")
    right = own_reading(reply, solution) is True
    return Verdict(right, "correct" if right else "wrong", stated[:LONGEST])


BENCH = spec_bench(
    "math_500_100", each(view), score, extract=verbatim, scorer=2, opinion=opinion, stated=Stated(score_stated)
)
