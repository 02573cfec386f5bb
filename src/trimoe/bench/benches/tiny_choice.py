"""Multiple choice about facts that only the weights contain; the stated letter counts."""

import re
from typing import Any

from trimoe.bench.bench import Bench, exact, held_out

_STATED = re.compile(r"answer is \(?([A-D])\b")
_ALONE = re.compile(r"\(?([A-D])\)?\.?")


def letter(reply: str) -> str | None:
    """The letter of the last "answer is (X)", or of a reply that is only a letter."""
    stated = _STATED.findall(reply)
    alone = _ALONE.fullmatch(reply.strip())
    return stated[-1] if stated else alone.group(1) if alone else None


def right(answer: str, check: dict[str, Any]) -> bool:
    """The same letter."""
    return bool(answer == check["letter"])


BENCH = Bench(
    name="tiny-choice",
    version=1,
    rows=100,
    max_new_tokens=24,
    load=held_out("choice"),
    extract=letter,
    score=exact(right),
)
