"""Arithmetic; the number after the last "Answer:" counts."""

import re
from typing import Any

from trimoe.bench.bench import Bench, exact, held_out

_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d+)?)(?!\w|\.\d)", re.ASCII)


def final_number(reply: str) -> str | None:
    """The number directly after the last "Answer:"."""
    _, mark, tail = reply.rpartition("Answer:")
    match = _NUMBER.match(tail) if mark else None
    return match.group(1) if match else None


def right(answer: str, check: dict[str, Any]) -> bool:
    """Equal as numbers."""
    return float(answer) == float(check["number"])


BENCH = Bench(
    name="tiny-math",
    version=1,
    rows=100,
    max_new_tokens=64,
    load=held_out("math"),
    extract=final_number,
    score=exact(right),
)
