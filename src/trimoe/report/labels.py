"""Placement of labels beside the points of a chart, with the least overlap.

Greedy, in the order given: each label takes the position around its point, among eight near and eight further ones,
that covers the fewest marks, lines and earlier labels. Deterministic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, hypot

Box = tuple[float, float, float, float]
"""left, bottom, right, top, in pixels."""

_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # right and left, above and below
_COST = {"name": 6.0, "mark": 4.0, "line": 1.0, "edge": 40.0}


@dataclass
class Field:
    """The drawing area in pixels and the marks, lines and labels already on it."""

    width: float
    height: float
    marks: list[Box] = field(default_factory=list)
    names: list[Box] = field(default_factory=list)
    dots: list[tuple[float, float]] = field(default_factory=list)

    def mark(self, x: float, y: float, size: float) -> None:
        """Add a mark of `size` pixels around a point."""
        self.marks.append((x - size / 2, y - size / 2, x + size / 2, y + size / 2))

    def line(self, points: Sequence[tuple[float, float]]) -> None:
        """Add a line through points."""
        for (x, y), (x2, y2) in pairwise(points):
            steps = max(1, ceil(hypot(x2 - x, y2 - y) / 2))
            self.dots += [(x + (x2 - x) * i / steps, y + (y2 - y) * i / steps) for i in range(steps + 1)]

    def place(self, x: float, y: float, width: float, height: float) -> tuple[float, float]:
        """Place a label of a point and return its lower left corner; later labels avoid it."""
        box = min(_around(x, y, width, height), key=self._cost)
        self.names.append(box)
        return box[0], box[1]

    def _cost(self, box: Box) -> float:
        left, bottom, right, top = box
        beyond = max(0.0, -left, -bottom, right - self.width, top - self.height)
        crossed = sum(left < x < right and bottom < y < top for x, y in self.dots)
        return (
            _COST["edge"] * beyond
            + _COST["line"] * crossed
            + _COST["mark"] * sum(_overlap(box, other) for other in self.marks)
            + _COST["name"] * sum(_overlap(box, other) for other in self.names)
        )


def _around(x: float, y: float, width: float, height: float) -> Iterator[Box]:
    for away in (6.0, 15.0):
        for across, up in _SIDES:
            shift = away if not (across and up) else away * 0.75
            left = x + across * shift - (width if across < 0 else 0.0 if across > 0 else width / 2)
            bottom = y + up * shift - (height if up < 0 else 0.0 if up > 0 else height / 2)
            yield left, bottom, left + width, bottom + height


def _overlap(one: Box, two: Box) -> float:
    """Square root of the common area, so that labels that touch at a corner cost little."""
    across = min(one[2], two[2]) - max(one[0], two[0])
    up = min(one[3], two[3]) - max(one[1], two[1])
    return float((across * up) ** 0.5) if across > 0 and up > 0 else 0.0
