"""tiny-code: a Python function, executed against four calls. Extraction: the last complete fenced block."""

import re
from typing import Any

from trimoe.evaluate.bench import Bench, Verdict
from trimoe.evaluate.benches import heldout
from trimoe.evaluate.sandbox import run_python

_BLOCK = re.compile(r"```(?:python)?[ \t]*\n(.*?)\n?```", re.DOTALL)


def score(reply: str, check: dict[str, Any]) -> Verdict:
    """Every call must return the expected value (compared by repr, so 1 is not 1.0 and not True)."""
    blocks = _BLOCK.findall(reply)
    if not blocks:
        return Verdict(False, "extraction failed")
    calls = "".join(f"assert repr({check['entry_point']}({call})) == {expected!r}\n" for call, expected in check["tests"])
    outcome = run_python(f"{blocks[-1]}\n{calls}")
    return Verdict(outcome.passed, outcome.cause, blocks[-1])


BENCH = Bench("tiny-code", 1, 80, lambda: heldout("code", 200), score)
