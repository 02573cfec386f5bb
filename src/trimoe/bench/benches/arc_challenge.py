"""ARC-Challenge: extracts the letter that the reply states last."""

import re
from typing import Any

from trimoe.bench.bench import exact
from trimoe.bench.rows import Row, View, each, spec_bench
from trimoe.bench.stated import REACH, after_phrase
from trimoe.bench.stated import letter as stated_letter
from trimoe.errors import BenchError

LETTERS = "ABCD"
_ALONE = re.compile(r"\b([A-D])\b")
# What follows a letter that the reply rejects, or leads to one.
_REJECTED = re.compile(
    r"[*_)\]\"'.,]{0,4}\s{0,3}(?:"
    r"(?:is|are|was|were|do(?:es)?|can|could|would|will|has|must(?: be)?|should|may|seems?|looks)"
    r"\s{0,3}"
    r"(?:(?:clearly |also )?not\b|n['’]t\b|never\b"
    r"|(?:clearly |also |simply |just |plainly |therefore )?(?:wrong|incorrect|false|ruled out|eliminated|out\b"
    r"|impossible|invalid|irrelevant|unrelated|a distractor|too\b))"
    r"|cannot\b|(?:can|is|are|does|wo)n?['’]t\b|fails?\b|contradicts?\b"
    r"|seems? (?:wrong|incorrect|unlikely)|looks? (?:wrong|incorrect|tempting))",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"(?:(?:\b|(?<=\w))(?:not|n't|n’t|nor|neither|never|rather than|instead of|unlike|eliminat(?:e|es|ed|ing)"
    r"|exclud(?:e|es|ed|ing)"
    r"|reject(?:s|ed|ing)?|rul(?:e|es|ed|ing) out|discard(?:s|ed|ing)?|over|beats|against))"
    r"\s{1,3}(?:(?:option|choice|answer|letter)s?\s{1,3})?[*_(\[\"']{0,4}$",
    re.IGNORECASE,
)
# The article, not the letter: a small word follows that no sentence about a choice goes on with.
_ARTICLE = re.compile(
    r"\s(?!(?:is|are|was|and|or|because|since|as|for|would|does|has|can|seems|fits|works|it|the)\b)[a-z]{2}"
)
_CONCLUDED = re.compile(
    r"\b(?:therefore|thus|hence|so|choose|chose|pick|select|(?:go|going|went) with|conclude|leaves|leaving)\b", re.I
)
_CORRECT = re.compile(
    r"\b([A-D])\b[)\]*.\"']{0,3}\s{1,3}(?:is|must be|would be|remains)\s{1,3}"
    r"(?:clearly |therefore |thus |indeed )?(?:the )?(?:correct|right|best|true|answer|only)\b"
)
TAIL = 400  # characters


def letter(reply: str) -> str | None:
    """The letter stated last, in words ("the answer is ...", "answer: ...") or in a box; else the one concluded last
    ("therefore C", "C is correct"); else the last single capital letter near the end. Letters that the reply rejects
    ("A is not", "not B") count only if there is no other."""
    tail = reply[-TAIL:]
    alone = [(match[1], match.start()) for match in _ALONE.finditer(tail) if not _is_article(tail, match)]
    meant = [name for name, at in alone if not _rejected(tail, at)]
    last = meant or [name for name, _ in alone]
    return stated_letter(reply) or _concluded(tail) or (str(last[-1]) if last else None)


def _concluded(tail: str) -> str | None:
    found = [(match.start(), match[1]) for match in _CORRECT.finditer(tail) if not _rejected(tail, match.start())]
    for match in _CONCLUDED.finditer(tail):
        letter_after = after_phrase(tail[match.end() : match.end() + REACH])
        if letter_after is not None and letter_after[1] and not _rejected(tail, match.end() + letter_after.start(1)):
            found.append((match.end() + letter_after.start(1), letter_after[1]))
    return max(found)[1] if found else None


def _is_article(tail: str, match: re.Match[str]) -> bool:
    return match[1] == "A" and _ARTICLE.match(tail, match.end()) is not None


def _rejected(tail: str, at: int) -> bool:
    """Whether the letter at this place is one that the reply rules out."""
    return bool(_REJECTED.match(tail, at + 1) or _NOT.search(tail, max(0, at - 40), at))


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


BENCH = spec_bench("arc_challenge", each(view), exact(right), extract=letter, scorer=4)
