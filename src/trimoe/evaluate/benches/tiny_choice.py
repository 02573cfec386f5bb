"""tiny-choice: multiple choice. Extraction: the last letter in brackets."""

import re
from typing import Any

from trimoe.evaluate.bench import Bench, Verdict
from trimoe.evaluate.benches import heldout


def score(reply: str, check: dict[str, Any]) -> Verdict:
    """Equality of letters."""
    found = re.findall(r"\(([A-D])\)", reply)
    if not found:
        return Verdict(False, "extraction failed")
    correct = found[-1] == check["letter"]
    return Verdict(correct, "correct" if correct else "wrong", found[-1])


BENCH = Bench("tiny-choice", 1, 16, lambda: heldout("choice", 100), score)
