"""Points of quality against file size: one file each, paired by size.

A point is measured (its score is read from a run log) or published (a number from elsewhere). Both may be compared, and
every pair, front and plot says which is which; they are never averaged or ranked as one kind.
Invariants: sizes are bytes, GB is 10^9; measured points of one bench share engine, sampler and stack. Not guaranteed:
that a published number was made under our protocol; a difference to it has no paired test.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from trimoe.errors import UsageError
from trimoe.judge.gather import Read
from trimoe.judge.rows import against_base, own_row
from trimoe.judge.statistics.paired import wilson

Kind = Literal["measured", "published"]
GB = 10**9


@dataclass(frozen=True)
class Point:
    """One file of `size` bytes. `score` is a share, `n` its number of items, `params` the number of weights.

    `read` is the run of a measured file: its interval and paired differences are those of `trimoe compare`.
    """

    model: str
    tier: str
    size: int
    score: float
    kind: Kind
    n: int | None = None
    params: float | None = None
    source: str = ""
    read: Read | None = None

    @property
    def label(self) -> str:
        """Model and tier."""
        return f"{self.model} {self.tier}".strip()

    @property
    def marks(self) -> tuple[str, ...]:
        """Caveats of a measured score, such as a pause; none are known for a published one."""
        return self.read.marks if self.read is not None else ()

    @property
    def bpw(self) -> float | None:
        """Bits per weight of the whole file: 8 x bytes / weights."""
        return 8 * self.size / self.params if self.params else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the score, where n is known."""
        if self.read is not None:
            score = own_row(self.read, False).score
            return score.low, score.high
        return wilson(self.score * self.n, self.n) if self.n else None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        body = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "read"}
        return body | {"gb": self.size / GB, "bpw": self.bpw, "interval": self.interval, "marks": self.marks}


@dataclass(frozen=True)
class Pair:
    """A rival's file and ours of about the same size. `difference` is ours minus theirs, a share.

    `p` is the paired test of `trimoe compare` if both were measured, else None.
    """

    rival: Point
    ours: Point
    difference: float
    p: float | None


def pair_by_size(
    ours: Sequence[Point], rivals: Sequence[Point], tolerance: float, pick: Literal["nearest", "best"]
) -> list[tuple[Point, Pair | None]]:
    """Every rival, largest first, with our file of the same size band, or None if there is none.

    The band is the rival's size plus or minus `tolerance` (a share). `nearest` takes the file closest in size, without
    looking at scores. `best` takes the best score in the band, which favours us: disclose it.
    """
    made: list[tuple[Point, Pair | None]] = []
    for rival in sorted(rivals, key=lambda p: -p.size):
        band = [p for p in ours if abs(p.size - rival.size) <= tolerance * rival.size]
        chosen = min(band, key=partial(_order, rival.size, pick), default=None)
        pair = None if chosen is None else Pair(rival, chosen, *paired(rival, chosen))
        made.append((rival, pair))
    return made


def _order(size: int, pick: str, p: Point) -> tuple[float, float, int]:
    """Sort key: closest in size or best in score, then the better score, then the smaller file."""
    return (abs(p.size - size), -p.score, p.size) if pick == "nearest" else (-p.score, 0.0, p.size)


def paired(before: Point, now: Point) -> tuple[float, float | None]:
    """(now minus before, p): for two measured files on their common items, with the test of `trimoe compare`.

    For other files it is the difference of the scores, without a test.
    """
    if before.read is not None and now.read is not None:
        change = against_base(own_row(now.read, False), before.read, now.read, False).change
        if change is not None:
            return change.difference, change.p
    return now.score - before.score, None


def front(points: Iterable[Point]) -> list[Point]:
    """The Pareto front, smallest first: files that no file of at most the same size equals or beats."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, -p.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best


def gigabytes(size: int) -> str:
    """A size in GB as text: two decimals, below 1 GB three significant digits."""
    return f"{size / GB:.2f}" if size >= GB else f"{size / GB:.3g}"


def best_under(points: Sequence[Point], size: int) -> Point:
    """The best file of at most `size` bytes; of equal ones the smaller. Raises `UsageError` if none is that small."""
    fitting = [p for p in points if p.size <= size]
    if not fitting:
        smallest = min((p.size for p in points), default=0)
        raise UsageError(
            f"no file is at most {size / GB:.2f} GB",
            expected="a file of that size",
            actual=f"the smallest has {smallest / GB:.2f} GB",
            remedy="raise --under, or add smaller tiers",
        )
    return min(fitting, key=lambda p: (-p.score, p.size))


def smallest_within(points: Sequence[Point], points_pp: float) -> tuple[Point, Point]:
    """(the smallest file at most `points_pp` below the best score, the file with that best score)."""
    if not points:
        raise UsageError(
            "there is no file to choose from", expected="one file", actual="none", remedy="add a row to the score table"
        )
    top = min(points, key=lambda p: (-p.score, p.size))
    # a millionth of a point: 1.0 pp must not fail by rounding
    near = [p for p in points if 100 * (top.score - p.score) <= points_pp + 1e-6]
    return min(near, key=lambda p: (p.size, -p.score)), top
