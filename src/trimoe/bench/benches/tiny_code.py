"""Python functions, run against tests in the sandbox."""

import ast
from collections.abc import Sequence
from typing import Any

from trimoe.bench.bench import Bench, Doc, Verdict, held_out
from trimoe.bench.code.compare import same, shown
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
    jobs = [Calls(source, doc.check["entry_point"], _arguments(doc), LIMITS) for source, doc in pairs]
    return [_verdict(source, doc, outcome) for (source, doc), outcome in zip(pairs, run_jobs(jobs), strict=True)]


def _arguments(doc: Doc) -> tuple[tuple[Any, ...], ...]:
    return tuple((ast.literal_eval(argument),) for argument, _ in doc.check["tests"])


def _verdict(source: str, doc: Doc, outcome: Outcome) -> Verdict:
    if outcome.status != "ok":
        return verdict(outcome, source)
    try:
        results = outcome.values()
    except ValueError as exc:
        return Verdict(False, "code error", source, str(exc))
    for result, (argument, expected) in zip(results, doc.check["tests"], strict=True):
        if not same(result, ast.literal_eval(expected)):
            return Verdict(False, "wrong", source, f"solve({argument}) gave {shown(result)}, expected {expected[:80]}")
    return Verdict(True, "correct", source)


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
