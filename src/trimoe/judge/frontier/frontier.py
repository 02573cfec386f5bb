"""Quality against file size: a score table with its Pareto fronts, choices and pairs of equal size."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from trimoe.errors import UsageError
from trimoe.io.sizes import parse_bytes
from trimoe.judge.frontier.points import Pair, Point, best_under, front, pair_by_size, paired, smallest_within
from trimoe.judge.frontier.score_table import read_score_table

Pick = Literal["nearest", "best"]


@dataclass(frozen=True)
class SmallestWithin:
    """The smallest file within some points of the best one, `top`; `p` is the paired test between them."""

    point: Point
    top: Point
    p: float | None


@dataclass(frozen=True)
class Frontier:
    """The files of one bench. `on_front` says of each point whether it is on the Pareto front of its kind.

    `best_under`, `smallest_within` and `pairs` are set if they were asked for; `pairs` has every rival with our file of
    the same size, or None.
    """

    bench: str
    points: tuple[Point, ...]
    on_front: tuple[bool, ...]
    best_under: Point | None = None
    smallest_within: SmallestWithin | None = None
    pick: Pick | None = None
    pairs: tuple[tuple[Point, Pair | None], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON values: the output of `trimoe ladder --json`."""
        body: dict[str, Any] = {
            "bench": self.bench,
            "points": [p.as_dict() | {"front": on} for p, on in zip(self.points, self.on_front, strict=True)],
        }
        if self.best_under is not None:
            body["best_under"] = self.best_under.as_dict()
        if self.smallest_within is not None:
            body["smallest_within"] = self.smallest_within.point.as_dict() | {"p": self.smallest_within.p}
        if self.pick is not None:
            body["pairs"] = [_pair_dict(rival, pair) for rival, pair in self.pairs]
            body["pick"] = self.pick
        return body


def frontier(
    table: Path | str,
    logs: Sequence[Path | str] = (),
    *,
    bench: str,
    ours: str | None = None,
    pick: Pick = "nearest",
    tolerance: float = 0.1,
    under: int | str | None = None,
    within: float | None = None,
) -> Frontier:
    """Read a score table and compare its files by size.

    `ours` pairs the files of this model with those of every other model whose size differs by at most `tolerance` (a
    share), choosing the `pick` in each band. `under` (bytes, or text such as "13GB") asks for the best file of at most
    that size, `within` for the smallest file at most so many points below the best. Raises `UsageError` for impossible
    options or where no file qualifies, `BadInput` for a wrong table, `Refused` for runs that cannot be compared.
    """
    if not isfinite(tolerance) or (within is not None and not isfinite(within)):
        raise UsageError(
            "--tolerance and --within are numbers", expected="finite numbers", actual="nan", remedy="correct them"
        )
    points = read_score_table(table, logs, bench)
    known = list(dict.fromkeys(p.model for p in points))
    if ours is not None and ours not in known:
        raise UsageError(f"no model {ours} in {table}", expected=", ".join(known), actual=ours, remedy="correct --ours")
    limit = parse_bytes(under) if isinstance(under, str) else under
    on_front = {id(p) for kind in ("measured", "published") for p in front([p for p in points if p.kind == kind])}
    own = [p for p in points if p.model == ours] if ours else points
    # A choice is made among files of one kind: among measured ones, if there are any.
    choice = [p for p in own if p.kind == "measured"] or own
    smallest = None
    best = None if limit is None else best_under(choice, limit)
    if within is not None:
        small, top = smallest_within(choice, within)
        smallest = SmallestWithin(small, top, None if small is top else paired(top, small)[1])
    rivals = [p for p in points if p.model != ours]
    return Frontier(
        bench,
        tuple(points),
        tuple(id(p) in on_front for p in points),
        best,
        smallest,
        pick if ours is not None else None,
        tuple(pair_by_size(own, rivals, tolerance, pick)) if ours is not None else (),
    )


def _pair_dict(rival: Point, pair: Pair | None) -> dict[str, Any]:
    if pair is None:
        return {"rival": rival.as_dict(), "ours": None, "difference": None, "p": None}
    return {"rival": rival.as_dict(), "ours": pair.ours.as_dict(), "difference": pair.difference, "p": pair.p}
