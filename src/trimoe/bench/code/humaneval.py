"""HumanEval's test format: the row defines `check(candidate)` with assertions. Also HumanEval+ in this format.

Tests and candidate run in separate processes. Helpers that the tests take from the prompt (`poly`, `encode_cyclic`) are
the prompt's versions, not the candidate's.
"""

from trimoe.bench.bench import Verdict
from trimoe.bench.code.environment import environments
from trimoe.bench.code.verdict import Pairs, verdict
from trimoe.sandbox import Check, run_jobs

ENVIRONMENT = environments()["humaneval"]

# HumanEval+ publishes HumanEval/32 with an assertion that fails for every answer, because it unpacks the root, which is
# a number. evalplus 0.3.1 fails every answer, too: its special case skips the line that counts an input as passed.
_BROKEN = "assert _poly(*candidate(*inp), inp) <= 0.0001"
_MENDED = "assert abs(_poly(*inp, candidate(*inp))) <= 0.0001"


def score(pairs: Pairs) -> list[Verdict]:
    """Rows have `prompt`, `test` and `entry_point`."""
    jobs = [_job(source, doc.check) for source, doc in pairs]
    return [verdict(outcome, source) for outcome, (source, _) in zip(run_jobs(jobs), pairs, strict=True)]


def _job(source: str, check: dict[str, str]) -> Check:
    entry = check["entry_point"]
    tests = f"{check['test'].replace(_BROKEN, _MENDED)}\ncheck({entry})\n"
    program = ENVIRONMENT.program(source, check["test"])
    return Check(program, check["prompt"], tests, (entry,), ENVIRONMENT.limits)
