"""ARC-Challenge: extracts the letter that the reply states last."""

import re
from typing import Any

from trimoe.bench.bench import exact
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.bench.stated import letter as stated_letter
from trimoe.errors import BenchError

LETTERS = "ABCD"
_ALONE = re.compile(r"\b([A-D])\b")
TAIL = 400  # characters


def letter(reply: str) -> str | None:
    """The letter stated last, in words ("the answer is ...", "answer: ...") or in a box; else the last single capital
    letter near the end."""
    stated = stated_letter(reply)
    alone = _ALONE.findall(reply[-TAIL:])
    return stated or (str(alone[-1]) if alone else None)


def view(row: Row) -> View:
    """The choices as A to D, whatever their labels. They are separated by a backslash and an n; see the spec."""
    texts, labels = list(row["choices"]["text"]), list(row["choices"]["label"])
    place = labels.index(row["answerKey"])
    if place >= len(LETTERS):
        raise BenchError(
            f"ARC row {row['id']} cannot be asked",
            expected="a gold answer among the first four choices",
            actual=f"choice {place + 1}",
            remedy="use the pinned data set, unchanged",
        )
    shown = r"\n".join(f"{name}. {text}" for name, text in zip(LETTERS, texts, strict=False))
    gold = LETTERS[place]
    return View({"question": row["question"], "choices": shown}, {"letter": gold}, f"The best answer is {gold}")


def right(answer: str, check: dict[str, Any]) -> bool:
    """The same letter."""
    return bool(answer == check["letter"])


BENCH = spec_bench("arc_challenge", each(view), exact(right), extract=letter, scorer=3)
