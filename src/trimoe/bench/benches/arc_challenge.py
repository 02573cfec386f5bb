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
    r"[)\]*.\"']{0,3}\s{1,3}(?:is|are|was|were|does|do|can|could|would|seems?|must be|looks)\s?(?:n't|n’t|not\b|never\b"
    r"|(?:clearly |simply |also |therefore |thus )?(?:wrong|incorrect|false|out\b|eliminated|ruled out|invalid|excluded"
    r"|impossible|a distractor|irrelevant))",
    re.I,
)
_NOT = re.compile(
    r"(?:\bnot|n't|n’t|\bneither|\bnor|\brather than|\binstead of|\bover|\beliminates?|\brules? out)"
    r"\s{1,3}[(\[*\"']{0,3}$",
    re.I,
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
    alone = [(match[1], match.start()) for match in _ALONE.finditer(tail)]
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


def _rejected(tail: str, at: int) -> bool:
    """Whether the letter at this place is one that the reply rules out."""
    return bool(_REJECTED.match(tail, at + 1) or _NOT.search(tail, max(0, at - 20), at))


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
