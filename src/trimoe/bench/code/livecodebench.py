"""LiveCodeBench's functional tests: a method of `Solution` is called with the arguments of each test.

As in LiveCodeBench's own runner, the program gets its imports and settings (`environments.toml`), one instance answers
all tests, a program without a class `Solution` answers with its function, and tuples count as lists, because the tests
are JSON. Expected values stay outside the sandbox.
"""

from dataclasses import replace

from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.code.compare import Difference, Due, differences
from trimoe.bench.code.environment import environments
from trimoe.bench.code.verdict import Pairs, verdict
from trimoe.sandbox import Calls, Outcome, run_jobs

ENVIRONMENT = environments()["livecodebench"]
LIMITS = ENVIRONMENT.limits


def score(pairs: Pairs) -> list[Verdict]:
    """One verdict per pair. Rows have `method` and `tests`, a list of (arguments, expected value)."""
    outcomes = run_jobs([_job(source, doc) for source, doc in pairs])
    dues = [Due.of([expected for _, expected in doc.check["tests"]], "listed") for _, doc in pairs]
    found = differences(run_jobs, [outcome.lines for outcome in outcomes], dues)
    return [_verdict(source, ran, one) for (source, _), ran, one in zip(pairs, outcomes, found, strict=True)]


def _job(source: str, doc: Doc) -> Calls:
    args = tuple(tuple(arguments) for arguments, _ in doc.check["tests"])
    entry = f"Solution().{doc.check['method']}" if "class Solution" in source else str(doc.check["method"])
    return Calls(ENVIRONMENT.program(source), entry, args, replace(LIMITS, cpu=LIMITS.cpu * max(1, len(args))))


def _verdict(source: str, outcome: Outcome, found: Difference | None) -> Verdict:
    """The first fault is the cause: a wrong result before an exception in a later call."""
    if found is None:
        return verdict(outcome, source)
    return found.verdict(source, f"test {found.place + 1}: got {found.got}, expected {found.expected}")
