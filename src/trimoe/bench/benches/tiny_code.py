"""Python functions, run against tests in the sandbox."""

import ast
from collections.abc import Sequence
from typing import Any

from trimoe.bench.bench import Bench, Doc, Verdict, held_out
from trimoe.bench.code.compare import Difference, Due, differences
from trimoe.bench.code.verdict import verdict
from trimoe.bench.fences import blocks
from trimoe.sandbox import Calls, Limits, Outcome, require_sandbox, run_jobs

LIMITS = Limits(cpu=2, call_cpu=2, idle=10, memory=512 << 20, output=256 << 10)
TAGS = ("python", "py")


def last_block(reply: str) -> str | None:
    """Source of the last closed block that is tagged as Python."""
    found = [block.text for block in blocks(reply) if block.opened and block.closed and block.tag in TAGS]
    return f"{found[-1]}\n" if found and found[-1].strip() else None


def score(pairs: Sequence[tuple[str, Doc]]) -> list[Verdict]:
    """Run every candidate; the expected values never enter the sandbox."""
    outcomes = run_jobs([Calls(source, doc.check["entry_point"], _arguments(doc), LIMITS) for source, doc in pairs])
    dues = [Due.of([ast.literal_eval(expected) for _, expected in doc.check["tests"]], "same") for _, doc in pairs]
    lines = [outcome.lines if outcome.status == "ok" else () for outcome in outcomes]
    found = differences(run_jobs, lines, dues)
    return [_verdict(*pair, ran, one) for pair, ran, one in zip(pairs, outcomes, found, strict=True)]


def _arguments(doc: Doc) -> tuple[tuple[Any, ...], ...]:
    return tuple((ast.literal_eval(argument),) for argument, _ in doc.check["tests"])


def _verdict(source: str, doc: Doc, outcome: Outcome, found: Difference | None) -> Verdict:
    if found is None:
        return verdict(outcome, source)
    argument, expected = doc.check["tests"][found.place]
    return found.verdict(source, f"solve({argument}) gave {found.got}, expected {expected[:80]}")


BENCH = Bench(
    name="tiny-code",
    version=1,
    rows=200,
    max_new_tokens=96,
    load=held_out("code"),
    extract=last_block,
    score=score,
    needs=require_sandbox,
)
