"""LiveCodeBench's functional tests: a method of `Solution` is called with the arguments of each test.

As in LiveCodeBench's own runner, the program gets its imports and settings (`environments.toml`), one instance answers
all tests, a program without a class `Solution` answers with its function, and tuples count as lists, because the tests
are JSON. Expected values stay outside the sandbox.
"""

from dataclasses import replace
from typing import Any

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code.compare import same, shown
from trimoe.bench.code.environment import environments
from trimoe.bench.code.verdict import Pairs, verdict
from trimoe.sandbox import Calls, Outcome, run_jobs

ENVIRONMENT = environments()["livecodebench"]
LIMITS = ENVIRONMENT.limits


def score(pairs: Pairs) -> list[Verdict]:
    """One verdict per pair. Rows have `method` and `tests`, a list of (arguments, expected value)."""
    jobs = [_job(source, doc) for source, doc in pairs]
    return [_verdict(source, doc, outcome) for (source, doc), outcome in zip(pairs, run_jobs(jobs), strict=True)]


def _job(source: str, doc: Doc) -> Calls:
    args = tuple(tuple(arguments) for arguments, _ in doc.check["tests"])
    entry = f"Solution().{doc.check['method']}" if "class Solution" in source else str(doc.check["method"])
    return Calls(ENVIRONMENT.program(source), entry, args, replace(LIMITS, cpu=LIMITS.cpu * max(1, len(args))))


def _verdict(source: str, doc: Doc, outcome: Outcome) -> Verdict:
    try:
        results = outcome.values()
    except ValueError as exc:
        return Verdict(False, "code error", source, str(exc))
    for number, (result, (_, expected)) in enumerate(zip(results, doc.check["tests"], strict=False), 1):
        if not same(listed(result), listed(expected)):
            return Verdict(False, "wrong", source, f"test {number}: got {shown(result)}, expected {shown(expected)}")
    return verdict(outcome, source)


def listed(value: Any) -> Any:
    """Tuples converted to lists at any depth, because JSON does not distinguish them."""
    if isinstance(value, tuple | list):
        return [listed(item) for item in value]
    return {key: listed(item) for key, item in value.items()} if isinstance(value, dict) else value
