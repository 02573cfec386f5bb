"""tiny-math: arithmetic with a final number. Extraction: the integer after the last "Answer:"."""

import re
from typing import Any

from trimoe.evaluate.bench import Bench, Verdict
from trimoe.evaluate.benches import heldout


def score(reply: str, check: dict[str, Any]) -> Verdict:
    """Equality of whole numbers."""
    found = re.findall(r"Answer:\s*(-?\d+)", reply)
    if not found:
        return Verdict(False, "extraction failed")
    correct = int(found[-1]) == check["number"]
    return Verdict(correct, "correct" if correct else "wrong", found[-1])


BENCH = Bench("tiny-math", 1, 64, lambda: heldout("math", 100), score)
