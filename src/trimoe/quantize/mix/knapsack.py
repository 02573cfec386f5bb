"""The multiple-choice knapsack, solved exactly: one option per group, least total cost within a budget of bytes.

Groups are added one by one. A partial choice is kept if no other one is better in both bytes and cost, and if it could
still beat the best complete choice known. Both cuts are safe, so the result is optimal. The rest is bounded by the
linear relaxation, whose optimum is a greedy walk along each group's convex hull (Sinha and Zoltners 1979). If there are
more partial choices than `LIMIT` they are thinned out; `Solution.bound` remains a proof.
Not guaranteed: that costs add up in the model that is built; only measuring it can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trimoe.errors import BadInput

LIMIT = 200_000  # partial choices kept; 120 groups of 9 options need far fewer in practice


@dataclass(frozen=True)
class Solution:
    """`picks`: the option of each group. `bound`: no choice within the budget costs less."""

    picks: tuple[int, ...]
    nbytes: int
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much cheaper another choice could be at most; 0 is proven optimal."""
        return max(0.0, self.cost - self.bound)


Options = Sequence[tuple[int, float]]  # (bytes, cost)


def solve(groups: Sequence[Options], budget: int, limit: int = LIMIT) -> Solution:
    """The cheapest choice of at most `budget` bytes. Raises `BadInput` if even the smallest one is larger."""
    least = sum(min(size for size, _ in options) for options in groups)
    if least > budget:
        raise BadInput(
            "no mix of types is that small",
            expected=f"at least {least:,} bytes",
            actual=f"{budget:,} bytes",
            remedy="ask for a larger size, or allow smaller types",
        )
    bounds = [_relaxed(groups[i:]) for i in range(len(groups) + 1)]
    known = _greedy(groups, budget)
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []  # per group: the partial choice it continues, and its option
    thinned = False
    for number, options in enumerate(groups):
        size = (sizes[:, None] + np.array([s for s, _ in options], np.int64)[None, :]).ravel()
        cost = (costs[:, None] + np.array([c for _, c in options])[None, :]).ravel()
        reach = cost + _at(bounds[number + 1], budget - size)
        # Rounding must never discard the best choice, so compare with a tolerance.
        alive = np.flatnonzero(reach <= known + 1e-9 * (1 + abs(known)))
        order = alive[np.lexsort((cost[alive], size[alive]))]
        better = np.concatenate(([True], cost[order][1:] < np.minimum.accumulate(cost[order])[:-1]))
        kept = order[better]
        if len(kept) > limit:
            kept = kept[np.unique(np.linspace(0, len(kept) - 1, limit).astype(int))]
            thinned = True
        trail.append((kept // len(options), kept % len(options)))
        sizes, costs = size[kept], cost[kept]
    if not len(costs):  # only after thinning: fall back to the greedy choice
        picks = _greedy_picks(groups, budget)
    else:
        at, found = int(np.argmin(costs)), []
        for parents, chosen in reversed(trail):
            found.append(int(chosen[at]))
            at = int(parents[at])
        picks = tuple(reversed(found))
    cost_of = float(sum(groups[g][p][1] for g, p in enumerate(picks)))
    bound = float(_at(bounds[0], np.array([budget]))[0]) if thinned else cost_of
    return Solution(picks, sum(groups[g][p][0] for g, p in enumerate(picks)), cost_of, min(bound, cost_of))


Curve = tuple[np.ndarray, np.ndarray]  # bytes (rising) -> least cost of the linear relaxation


def _hull(options: Options) -> list[tuple[int, float, int]]:
    """(bytes, cost, option) on the lower convex hull, from the smallest to the cheapest."""
    hull: list[tuple[int, float, int]] = []
    for size, cost, number in sorted((s, c, i) for i, (s, c) in enumerate(options)):
        if hull and (size == hull[-1][0] or cost >= hull[-1][1]):
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (size - hull[-1][0]) >= (cost - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((size, cost, number))
    return hull


def _relaxed(groups: Sequence[Options]) -> Curve:
    hulls = [_hull(options) for options in groups]
    steps = [(b[0] - a[0], b[1] - a[1]) for hull in hulls for a, b in pairwise(hull)]
    steps.sort(key=lambda step: step[1] / step[0])
    sizes = np.cumsum([sum(hull[0][0] for hull in hulls), *(size for size, _ in steps)])
    costs = np.cumsum([sum(hull[0][1] for hull in hulls), *(cost for _, cost in steps)])
    return sizes.astype(np.float64), costs.astype(np.float64)


def _at(curve: Curve, room: np.ndarray) -> np.ndarray:
    """Least relaxed cost in `room` bytes, infinite where not even the smallest options fit."""
    found: np.ndarray = np.where(room < curve[0][0], np.inf, np.interp(room, curve[0], curve[1]))
    return found


def _greedy_picks(groups: Sequence[Options], budget: int) -> tuple[int, ...]:
    """Options from a walk along the hulls, steepest step first, skipping what does not fit."""
    hulls = [_hull(options) for options in groups]
    at = [0] * len(groups)
    room = budget - sum(hull[0][0] for hull in hulls)
    steps = [
        ((b[1] - a[1]) / (b[0] - a[0]), g, i, b[0] - a[0])
        for g, hull in enumerate(hulls)
        for i, (a, b) in enumerate(pairwise(hull))
    ]
    for _, group, step, size in sorted(steps):
        if at[group] == step and size <= room:
            at[group], room = step + 1, room - size
    return tuple(hull[i][2] for hull, i in zip(hulls, at, strict=True))


def _greedy(groups: Sequence[Options], budget: int) -> float:
    return float(sum(groups[g][p][1] for g, p in enumerate(_greedy_picks(groups, budget))))
