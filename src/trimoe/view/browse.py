"""Selection and order of the samples that a page lists, as pure functions.

Invariants: every sample of two runs has exactly one kind of change; flipped samples come first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar
from urllib.parse import urlencode

from trimoe.evaluate.log.records import Scored
from trimoe.view.queries import Field

T = TypeVar("T")

Change = Literal["lost", "gained", "both wrong", "both right", "not scored", "only before", "only after"]
CHANGES: tuple[Change, ...] = (
    "lost",
    "gained",
    "both wrong",
    "not scored",
    "only before",
    "only after",
    "both right",
)
MISSED = "missed"  # matches every scored miss, whatever its cause

PAGE = 50
LONGEST = 500  # characters of a search text


@dataclass(frozen=True)
class Wanted:
    """Filter of a list. `causes` are causes, or kinds of change in a comparison; empty means all."""

    causes: tuple[str, ...] = ()
    q: str = ""
    field: Field = "all"
    page: int = 1

    @staticmethod
    def of(query: Mapping[str, str], causes: Sequence[str]) -> "Wanted":
        """From a query string; invalid values are ignored."""
        where: Field = "all"
        for known in ("prompt", "reply", "reasoning"):
            if query.get("in") == known:
                where = known
        number = query.get("page", "1")
        page = int(number) if number.isascii() and number.isdigit() and len(number) < 9 else 1
        return Wanted(tuple(causes), query.get("q", "").strip()[:LONGEST], where, max(1, page))

    def link(self, **changed: object) -> str:
        """The query string of this list with some values changed; empty, or starting with `?`."""
        now = {"cause": self.causes, "q": self.q, "in": self.field, "page": self.page} | changed
        pairs = [("cause", c) for c in _several(now["cause"])]
        pairs += [("q", str(now["q"]))] if now["q"] else []
        pairs += [("in", str(now["in"]))] if now["in"] != "all" and now["q"] else []
        pairs += [("page", str(now["page"]))] if now["page"] != 1 else []
        return "?" + urlencode(pairs) if pairs else ""


def _several(causes: object) -> Sequence[str]:
    return [causes] if isinstance(causes, str) else list(causes) if isinstance(causes, list | tuple) else []


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list. `number` counts from 1; `first` is the index of its first item in the whole list."""

    items: Sequence[T]
    number: int
    pages: int
    total: int
    first: int


def paged(items: Sequence[T], number: int, size: int = PAGE) -> Page[T]:
    """The page with that number, or the last page if there are fewer."""
    pages = max(1, -(-len(items) // size))
    number = min(max(1, number), pages)
    first = (number - 1) * size
    return Page(items[first : first + size], number, pages, len(items), first)


def chosen(samples: Sequence[Scored], causes: Collection[str], found: Collection[str] | None) -> list[Scored]:
    """Samples with one of the causes that match the search (`found` None: no search)."""
    return [
        s
        for s in samples
        if (not causes or s.verdict.cause in causes or (MISSED in causes and s.verdict.correct is False))
        and (found is None or s.sample.doc_id in found)
    ]


@dataclass(frozen=True)
class Item:
    """One sample in two runs; a side is None if that run lacks the sample."""

    doc_id: str
    change: Change
    before: Scored | None
    after: Scored | None


def side_by_side(before: Sequence[Scored], after: Sequence[Scored]) -> list[Item]:
    """Every sample of either run: flips first (lost, then gained), then in the bench's order."""
    was = {s.sample.doc_id: s for s in before}
    now = {s.sample.doc_id: s for s in after}
    items = [Item(doc, _change(was.get(doc), now.get(doc)), was.get(doc), now.get(doc)) for doc in {**was, **now}]
    return sorted(items, key=lambda item: (CHANGES.index(item.change), _position(item), item.doc_id))


def _change(before: Scored | None, after: Scored | None) -> Change:
    if before is None:
        return "only after"
    if after is None:
        return "only before"
    one, two = before.verdict.correct, after.verdict.correct
    if one is None or two is None:
        return "not scored"
    if one == two:
        return "both right" if one else "both wrong"
    return "lost" if one else "gained"


def _position(item: Item) -> int:
    side = item.before or item.after
    return side.sample.position if side else 0


def around(docs: Sequence[str], doc_id: str) -> tuple[str | None, str | None, int | None]:
    """(previous id, next id, index) of a sample in a list. Without it: (None, the first id, None)."""
    try:
        place = docs.index(doc_id)
    except ValueError:
        return None, (docs[0] if docs else None), None
    return (docs[place - 1] if place else None), (docs[place + 1] if place + 1 < len(docs) else None), place
