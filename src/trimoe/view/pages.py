"""Templates of the viewer and the functions they use; independent of logs and HTTP.

Invariants: all text is escaped by the templates; characters that hide or reorder text are shown as code points; no page
contains inline scripts or styles, as the content security policy requires.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from trimoe.judge.comparison import Row
from trimoe.judge.text import safe
from trimoe.report import words
from trimoe.view.textdiff import Piece, excerpt, hits

LONGEST = 400_000  # characters of a text on a page; the raw reply has the rest
_SHOWN = {"\n", "\t"}
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_GOOD_JOINERS = {"\u200d", "\u00ad"}  # joined emoji, soft hyphens


def environment() -> Environment:
    """The template environment; one per app."""
    made = Environment(
        loader=PackageLoader("trimoe.view"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "words": words,
        "plain": plain,
        "pieces": pieces,
        "sample_link": sample_link,
        "kind_of": kind_of,
        "meaning": MEANINGS.get,
        "bar": bar,
        "interval_bar": interval_bar,
        "short": short,
        "excerpt": excerpt,
        "hits": hits,
        "clock": clock,
        "score": score,
        "interval": interval,
        "progress": progress,
    }
    made.filters["line"] = line
    return made


def line(text: str, limit: int = 160) -> str:
    """A text on one line, shortened to `limit` characters."""
    return safe(text, limit)


def plain(text: str) -> str:
    """A text with hidden characters made visible, cut at `LONGEST` characters."""
    cut = text if len(text) <= LONGEST else text[:LONGEST]
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(
        c if c in _SHOWN or c in _GOOD_JOINERS or c.isprintable() or not _hides(c) else _number(c) for c in cut
    )


def _hides(c: str) -> bool:
    return unicodedata.category(c) in _HIDDEN


def _number(c: str) -> str:
    return f"⟨{ord(c):04X}⟩"


def pieces(parts: list[Piece]) -> list[Piece]:
    """`plain` applied to the pieces of a text."""
    return [(plain(text), mark) for text, mark in parts]


def sample_link(base: str, doc_id: str, query: str = "") -> str:
    """The address of a sample below `base`. Ids that a browser would treat as a path go into the query."""
    if doc_id in ("", ".", ".."):
        more = "&" + query[1:] if query else ""
        return f"{base}/sample/?doc={quote(doc_id, safe='')}{more}"
    return f"{base}/sample/{quote(doc_id, safe='')}{query}"


def kind_of(cause: str) -> str:
    """The CSS class (colour) of a cause."""
    if cause == "correct":
        return "right"
    if cause in ("harness error",):
        return "none"
    return "cut" if cause.startswith("truncated") else "odd" if cause in _ODD else "wrong"


_ODD = {"empty", "reasoning-only", "loop"}

MEANINGS: dict[str, str] = {
    "correct": "the answer is right",
    "wrong": "an answer in the expected form, but not the right one",
    "empty": "no text in the content or the reasoning",
    "reasoning-only": "no content, and no right answer in the reasoning",
    "truncated": "cut at a limit; the tokens were not counted",
    "truncated (cap)": "cut at the largest allowed number of tokens",
    "truncated (slot)": "prompt and reply filled the server's context",
    "truncated (budget)": "thinking left too few tokens for the answer",
    "loop": "the text repeats itself",
    "extraction failed": "no answer in the expected form",
    "code error": "the code failed: it raised, crashed or did not compile",
    "code timeout": "the code exceeded its time limit",
    "harness error": "lost or not scorable; not counted as wrong",
}
"""What each cause means; shown when the pointer rests on it."""


@dataclass(frozen=True)
class Slice:
    """A segment of a bar; `x` and `width` in percent of the bar."""

    x: float
    width: float
    kind: str
    label: str


def bar(causes: dict[str, int]) -> list[Slice]:
    """Causes as segments of a bar, in order."""
    total = sum(causes.values()) or 1
    out, x = [], 0.0
    for cause, count in causes.items():
        width = 100 * count / total
        out.append(Slice(round(x, 2), round(width, 2), kind_of(cause), f"{cause}: {count}"))
        x += width
    return out


def interval_bar(low: float, high: float, value: float | None) -> dict[str, float]:
    """Coordinates of an interval and its point in a drawing 100 units wide; the inputs are shares."""
    return {"x": round(100 * low, 2), "width": round(100 * (high - low), 2), "at": round(100 * (value or 0.0), 2)}


def short(value: Any, limit: int = 120) -> str:
    """A setting on one line."""
    return safe(str(value), limit)


def clock(stored: str | None) -> str:
    """A stored time without fractions of a second: 2026-11-25 13:07:05."""
    return "" if not stored else safe(stored[:19].replace("T", " "), 19)


def score(row: Row) -> str:
    """Right answers among the scored ones, in percent."""
    accuracy = row.score.accuracy
    return "not scored" if accuracy is None else f"{words.percent(accuracy)} %"


def interval(row: Row) -> str:
    """The 95 % interval of the score, in percent."""
    return "" if not row.score.n else f"{words.percent(row.score.low)} to {words.percent(row.score.high)}"


def progress(there: int, asked: int | None) -> str:
    """Number of stored samples, and of requested ones if different."""
    of = "" if asked is None or asked == there else f" of {words.count(asked)}"
    return f"{words.count(there)}{of}"
