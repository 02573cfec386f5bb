"""Pages as HTML: typed rows in, escaped text out. Nothing here asks a log or knows of HTTP.

Invariants: every text goes through the template's escaping; characters that hide or reorder text are shown by their
number; no page holds a script or a style of its own, so the strict content policy holds.
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

LONGEST = 400_000  # characters of a text on a page; the rest is one click away
_SHOWN = {"\n", "\t"}
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_GOOD_JOINERS = {"\u200d", "\u00ad"}  # joined emoji, soft hyphens


def environment() -> Environment:
    """Templates with what they need; one per app."""
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
    """A name in one line."""
    return safe(text, limit)


def plain(text: str) -> str:
    """A text with hidden characters made visible and a bound on its length."""
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
    """Pieces of a text as `plain` shows them."""
    return [(plain(text), mark) for text, mark in parts]


def sample_link(base: str, doc_id: str, query: str = "") -> str:
    """The address of a sample below `base`; ids that a browser would take for a path go into the query."""
    if doc_id in ("", ".", ".."):
        more = "&" + query[1:] if query else ""
        return f"{base}/sample/?doc={quote(doc_id, safe='')}{more}"
    return f"{base}/sample/{quote(doc_id, safe='')}{query}"


def kind_of(cause: str) -> str:
    """The class of a cause: its colour."""
    if cause == "correct":
        return "right"
    if cause in ("harness error",):
        return "none"
    return "cut" if cause.startswith("truncated") else "odd" if cause in _ODD else "wrong"


_ODD = {"empty", "reasoning-only", "loop"}


@dataclass(frozen=True)
class Slice:
    """A stretch of a bar, in hundredths of its width."""

    x: float
    width: float
    kind: str
    label: str


def bar(causes: dict[str, int]) -> list[Slice]:
    """Causes as stretches of a bar, in their order."""
    total = sum(causes.values()) or 1
    out, x = [], 0.0
    for cause, count in causes.items():
        width = 100 * count / total
        out.append(Slice(round(x, 2), round(width, 2), kind_of(cause), f"{cause}: {count}"))
        x += width
    return out


def interval_bar(low: float, high: float, value: float | None) -> dict[str, float]:
    """Numbers of a small drawing 100 wide: an interval and a point in it, shares."""
    return {"x": round(100 * low, 2), "width": round(100 * (high - low), 2), "at": round(100 * (value or 0.0), 2)}


def short(value: Any, limit: int = 120) -> str:
    """A setting in one line."""
    return safe(str(value), limit)


def clock(stored: str | None) -> str:
    """A stored time without its fractions: 2026-11-25 13:07:05."""
    return "" if not stored else safe(stored[:19].replace("T", " "), 19)


def score(row: Row) -> str:
    """The share of right answers among the scored ones, in percent."""
    accuracy = row.score.accuracy
    return "not scored" if accuracy is None else f"{words.percent(accuracy)} %"


def interval(row: Row) -> str:
    """Its 95 % interval."""
    return "" if not row.score.n else f"{words.percent(row.score.low)} to {words.percent(row.score.high)}"


def progress(there: int, asked: int | None) -> str:
    """How many samples there are, of how many."""
    of = "" if asked is None or asked == there else f" of {words.count(asked)}"
    return f"{words.count(there)}{of}"
