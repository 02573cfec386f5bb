r"""Answers that a reply states as final, in a box or in a phrase: a second opinion beside a protocol's own extraction.

Where a protocol fixes how answers are extracted (lm-eval's flexible filters, math-verify on the whole reply), the score
follows it, so that it stays comparable. It may still credit or miss an answer that the reply states plainly. Such rows
are noted in the verdict's detail, counted beside the score, and listed by the audit.
"""

import re
from collections.abc import Iterable
from typing import Literal

from trimoe.bench.bench import NOTE
from trimoe.bench.extract import boxes

_PHRASE = re.compile(
    r"(?:final|best|correct) answer(?: is)?|answer is|answer:|(?:correct|best|right) (?:option|choice) is",
    re.IGNORECASE,
)
# Allowed between the phrase and its letter: white space, quotes, brackets, emphasis, TeX around one letter.
_DECORATION = re.compile(
    r"(?:[\s:*_`$(\[{<\"'“‘–—-]|\\(?:text|textbf|mathbf|mathrm|boxed|bf|rm)(?![A-Za-z])|\\[(\[,; ]"
    r"|(?:option|choice|letter|clearly|therefore|thus|hence|indeed|definitely|likely|probably|most likely)\b)*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"([A-D])(?![^\W_]|['’])|([a-d])(?![\w'’])(?!\s+\w)")  # "is a mystery" names no option
_BOXED = re.compile(r"\\boxed\s{0,9}\{([^{}]{0,40}(?:\{[^{}]{0,40}\})?[^{}]{0,9})\}")
_IN_BOX = re.compile(
    r"[\s$(*]*(?:\\(?:text|textbf|mathbf|mathrm)\s*\{)?[\s(]*([A-D])(?:[\s)}.*$]*|[).:]\s[^{}]*\}?\s*)"
)
_FINAL = re.compile(
    r"final answer is:?[ \t]{0,9}\$([^$\n]{1,300})\$|final answer is:?[ \t]{0,9}\\\(([^\n]{1,300}?)\\\)", re.I
)
REACH = 60  # characters after a phrase within which its letter begins


def letter(reply: str) -> str | None:
    """The letter A to D stated last, in words ("the answer is ...", "answer: ...") or in a box.

    Linear in the length of the reply: the letter must start within `REACH` characters after a phrase.
    """
    stated = [
        (match.start(), (found[1] or found[2]).upper())
        for match in _PHRASE.finditer(reply)
        if (found := after_phrase(reply[match.end() : match.end() + REACH])) is not None
    ]
    boxed = [
        (match.start(), found[1])
        for match in _BOXED.finditer(reply)
        if (found := _IN_BOX.fullmatch(match[1])) is not None
    ]
    return max([*stated, *boxed])[1] if stated or boxed else None


def after_phrase(after: str) -> re.Match[str] | None:
    """The letter that text after a phrase begins with: group 1 a capital, group 2 a small one."""
    decoration = _DECORATION.match(after)
    return _LETTER.match(after, decoration.end() if decoration else 0)


def formula(reply: str) -> str | Literal[False] | None:
    r"""The content of the last \boxed{...}, or of "final answer is $...$" after it; None if the reply has neither.

    False if the last box is not closed: an answer was begun and not given.
    """
    found: list[tuple[int, str | None]] = [*boxes(reply)]
    found += [(match.start(), match[1] or match[2]) for match in _FINAL.finditer(reply)]
    if not found:
        return None
    content = max(found, key=lambda one: one[0])[1]
    return False if content is None else content


def disagreements(details: Iterable[str]) -> int:
    """Number of verdicts whose reply states another final answer than the extracted one."""
    return sum(NOTE in detail for detail in details)
