"""tiny-text: a transformation of given words; the reply must be exactly the result."""

from typing import Any

from trimoe.evaluate.bench import Bench, Verdict
from trimoe.evaluate.benches import heldout


def score(reply: str, check: dict[str, Any]) -> Verdict:
    """Equality after stripping."""
    correct = reply.strip() == check["text"]
    return Verdict(correct, "correct" if correct else "wrong", reply.strip())


BENCH = Bench("tiny-text", 1, 40, lambda: heldout("text", 100), score)
