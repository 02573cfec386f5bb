"""ARC-Challenge: the letter of the last stated answer."""

import re
from typing import Any

from trimoe.bench.bench import exact
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.errors import BenchError

LETTERS = "ABCD"
_STATED = re.compile(r"(?:best answer is|answer is|final answer|answer:)[\s:]*(?:\*\*)?\s*\(?([A-D])\b", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{\s*([A-D])\s*\}")
_ALONE = re.compile(r"\b([A-D])\b")
TAIL = 400  # characters


def letter(reply: str) -> str | None:
    """The last stated letter, else the last boxed one, else the last capital that stands alone near the end."""
    for found in (_STATED.findall(reply), _BOXED.findall(reply), _ALONE.findall(reply[-TAIL:])):
        if found:
            return str(found[-1]).upper()
    return None


def view(row: Row) -> View:
    """Four choices as A to D whatever their labels are. The separators are a backslash and an n, see the spec."""
    texts, labels = list(row["choices"]["text"]), list(row["choices"]["label"])
    place = labels.index(row["answerKey"])
    if place >= len(LETTERS):
        raise BenchError(f"ARC row {row['id']}", expected="a gold answer among the first four choices", actual="E")
    shown = r"\n".join(f"{name}. {text}" for name, text in zip(LETTERS, texts, strict=False))
    gold = LETTERS[place]
    return View({"question": row["question"], "choices": shown}, {"letter": gold}, f"The best answer is {gold}")


def right(answer: str, check: dict[str, Any]) -> bool:
    """The same letter."""
    return bool(answer == check["letter"])


BENCH = spec_bench("arc_challenge", each(view), exact(right), extract=letter)
