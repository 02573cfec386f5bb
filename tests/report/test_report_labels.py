"""Labels beside points: inside the drawing, without overlap, deterministic."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.report.labels import Box, Field

POINTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 300)), min_size=1, max_size=12, unique=True)


def placed(points: list[tuple[int, int]], width: float = 30, height: float = 11) -> list[Box]:
    field = Field(400, 300)
    field.line([(float(x), float(y)) for x, y in sorted(points)])
    for x, y in points:
        field.mark(x, y, 8)
    for x, y in points:
        field.place(x, y, width, height)
    return field.names


def apart(one: Box, two: Box) -> bool:
    return one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


@settings(max_examples=150, deadline=None)
@given(POINTS)
def test_labels_stay_near_their_points_and_are_deterministic(points: list[tuple[int, int]]) -> None:
    boxes = placed(points)
    assert boxes == placed(points)
    for (x, y), (left, bottom, right, top) in zip(points, boxes, strict=True):
        assert -16 <= left - x <= 16 or -16 <= right - x <= 16 or left <= x <= right
        assert -16 <= bottom - y <= 16 or -16 <= top - y <= 16 or bottom <= y <= top


def test_labels_avoid_the_edge_and_each_other() -> None:
    boxes = placed([(200, 150), (220, 150), (240, 150), (398, 298), (1, 1)])
    assert all(apart(one, two) for one, two in combinations(boxes, 2))
    assert all(left >= 0 and bottom >= 0 and right <= 400 and top <= 300 for left, bottom, right, top in boxes)


def test_a_single_point_has_its_label_to_the_upper_right() -> None:
    field = Field(400, 300)
    field.mark(100, 100, 8)
    left, bottom = field.place(100, 100, 30, 11)
    assert left > 100
    assert bottom > 100
