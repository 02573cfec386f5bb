"""Texts split into pieces: differences between two texts, and search hits.

Invariant: the joined pieces of a side equal its text. Not guaranteed: the smallest difference. Texts too long for a
word diff are compared by lines; texts too long for that show only their common ends.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

Piece = tuple[str, bool]
"""A piece of text, and whether it is marked (differs, or is a search hit)."""

MOST = 1500  # words or lines on either side: the matcher's time grows with their product
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_ALIKE = 0.3  # with a smaller share of common words, marking every difference is useless


def marked(one: str, two: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts as pieces, marked where they differ."""
    if one == two or not one or not two:
        return [(one, False)] if one else [], [(two, False)] if two else []
    head, tail = _common_ends(one, two)
    middle_one, middle_two = one[head : len(one) - tail], two[head : len(two) - tail]
    for split in (_WORDS.findall, _lines):
        a, b = split(middle_one), split(middle_two)
        if len(a) <= MOST and len(b) <= MOST:
            left, right = _matched(a, b)
            break
    else:
        left, right = [(middle_one, True)], [(middle_two, True)]
    start, end = one[:head], one[len(one) - tail :] if tail else ""
    return _tidy([(start, False), *left, (end, False)]), _tidy([(start, False), *right, (end, False)])


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _common_ends(one: str, two: str) -> tuple[int, int]:
    """Lengths of the common beginning and end, cut at word boundaries."""
    shorter = min(len(one), len(two))
    head = next((i for i in range(shorter) if one[i] != two[i]), shorter)
    while head and head < max(len(one), len(two)) and one[head - 1].isalnum():
        head -= 1
    most = shorter - head
    tail = next((i for i in range(most) if one[-1 - i] != two[-1 - i]), most)
    while tail and one[len(one) - tail].isalnum():
        tail -= 1
    return head, tail


def _matched(a: Sequence[str], b: Sequence[str]) -> tuple[list[Piece], list[Piece]]:
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.quick_ratio() < _ALIKE:
        return [("".join(a), True)], [("".join(b), True)]
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        left.append(("".join(a[i:j]), kind != "equal"))
        right.append(("".join(b[k:m]), kind != "equal"))
    return left, right


def _tidy(pieces: Sequence[Piece]) -> list[Piece]:
    """Drop empty pieces and join neighbours of one kind."""
    out: list[Piece] = []
    for text, differs in pieces:
        if not text:
            continue
        if out and out[-1][1] == differs:
            out[-1] = (out[-1][0] + text, differs)
        else:
            out.append((text, differs))
    return out


def hits(text: str, needle: str) -> list[Piece]:
    """The text as pieces, with case-insensitive hits of the needle marked."""
    if not needle:
        return [(text, False)] if text else []
    pieces: list[Piece] = []
    end = 0
    for match in re.finditer(re.escape(needle), text, re.IGNORECASE):
        pieces += [(text[end : match.start()], False), (match.group(), True)]
        end = match.end()
    return _tidy([*pieces, (text[end:], False)])


def excerpt(text: str, needle: str, width: int) -> str:
    """At most `width` characters of a text on one line, around the first hit if there is one."""
    match = re.search(re.escape(needle), text, re.IGNORECASE) if needle else None
    start = max(0, match.start() - width // 3) if match else 0
    if start and (space := text.find(" ", start, match.start() if match else start)) >= 0:
        start = space + 1
    cut = text[start : start + width]
    line = " ".join(cut.split())
    return ("… " if start else "") + line + (" …" if start + width < len(text) else "")
