"""ARC-Challenge: extracts the letter that the reply states last."""

import re
from typing import Any

from trimoe.bench.bench import exact
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.errors import BenchError

LETTERS = "ABCD"
_PHRASE = re.compile(r"answer is|final answer|answer:", re.IGNORECASE)
# Allowed between the phrase and its letter: white space, quotes, brackets, emphasis, TeX around one letter.
_DECORATION = re.compile(
    r"(?:[\s:*_`$(\[{<\"'“‘]|\\(?:text|textbf|mathbf|mathrm|boxed|bf|rm)(?![A-Za-z])|\\[(\[,; ]"
    r"|(?:option|choice|letter)\b)*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"([A-D])(?![\w'’])|([a-d])(?![\w'’])(?!\s+\w)")  # "is a mystery" names no option
_BOXED = re.compile(r"\\boxed\s{0,9}\{([^{}]{0,40}(?:\{[^{}]{0,40}\})?[^{}]{0,9})\}")
_IN_BOX = re.compile(r"[\s$(*]*(?:\\(?:text|textbf|mathbf|mathrm)\s*\{)?[\s(]*([A-D])[\s)}.*$]*")
_ALONE = re.compile(r"\b([A-D])\b")
REACH = 60  # characters after a phrase within which its letter begins
TAIL = 400  # characters


def letter(reply: str) -> str | None:
    """The letter stated last, in words ("the answer is ...", "answer: ...") or in a box; else the last single capital
    letter near the end.

    Linear in the length of the reply: the letter must start within `REACH` characters after a phrase.
    """
    stated = [
        (match.start(), (found[1] or found[2]).upper())
        for match in _PHRASE.finditer(reply)
        if (found := _stated(reply[match.end() : match.end() + REACH])) is not None
    ]
    boxed = [
        (match.start(), found[1])
        for match in _BOXED.finditer(reply)
        if (found := _IN_BOX.fullmatch(match[1])) is not None
    ]
    if stated or boxed:
        return max([*stated, *boxed])[1]
    alone = _ALONE.findall(reply[-TAIL:])
    return str(alone[-1]) if alone else None


def _stated(after: str) -> re.Match[str] | None:
    decoration = _DECORATION.match(after)
    return _LETTER.match(after, decoration.end() if decoration else 0)


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


BENCH = spec_bench("arc_challenge", each(view), exact(right), extract=letter, scorer=2)
