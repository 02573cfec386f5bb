"""Python functions, executed against tests in the sandbox."""

import ast
import re
from collections.abc import Sequence

from trimoe.evaluate.bench import Bench, Doc, Verdict, held_out
from trimoe.evaluate.sandbox import Job, Outcome, run_jobs

_FENCE = re.compile(r"^```(?:python|py)[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def last_block(reply: str) -> str | None:
    """Source of the last closed ```python block."""
    blocks = _FENCE.findall(reply)
    return blocks[-1] if blocks and blocks[-1].strip() else None


def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
    """Run every candidate; the expected values never enter the child."""
    jobs = [Job(source, doc.check["entry_point"], tuple(arg for arg, _ in doc.check["tests"])) for source, doc in pairs]
    return [_verdict(source, doc, outcome) for (source, doc), outcome in zip(pairs, run_jobs(jobs), strict=True)]


def _verdict(source: str, doc: Doc, outcome: Outcome) -> Verdict:
    if outcome.status == "harness":
        return Verdict(None, "harness error", source, outcome.detail)
    if outcome.status != "ok":
        return Verdict(False, "code timeout" if outcome.status == "timeout" else "code error", source, outcome.detail)
    for result, (arg, expected) in zip(outcome.results, doc.check["tests"], strict=True):
        if result != expected and not _same(result, expected):
            return Verdict(False, "wrong", source, f"solve({arg}) gave {result[:80]}, expected {expected[:80]}")
    return Verdict(True, "correct", source)


def _same(result: str, expected: str) -> bool:
    """Equal values count as equal whatever their repr (a set's order, 2 and 2.0); anything but a literal does not."""
    try:
        return bool(ast.literal_eval(result) == ast.literal_eval(expected))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


BENCH = Bench(
    name="tiny-code", version=1, rows=200, max_new_tokens=96, load=held_out("code"), extract=last_block, score=score
)
