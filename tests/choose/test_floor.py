"""A reference floor file with a clamp: the means are rescaled, not the counts that were rounded from them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimoe.choose.floor import read_floors, rescale
from trimoe.errors import RecipeError


def write(
    path: Path, floors: list[object], means: list[object] | None = None, name: str = "top98_mean_per_layer"
) -> Path:
    data: dict[str, object] = {"floor_per_layer": {str(i): f for i, f in enumerate(floors)}}
    if means is not None:
        data[name] = {str(i): m for i, m in enumerate(means)}
    path.write_text(json.dumps(data))
    return path


def test_the_means_are_rescaled_where_the_file_has_them(tmp_path: Path) -> None:
    means = [100.0, 149.0, 151.0, 200.0, 245.0, 300.0]
    rounded = rescale(means, (75, 95))
    file = write(tmp_path / "floor.json", rounded, means)
    assert read_floors(file) == rounded
    want = [round(15 + 10 * (m - 100) / 200) for m in means]
    assert read_floors(file, (15, 25)) == want
    # the two readings differ, or this test would show nothing
    assert read_floors(write(tmp_path / "counts.json", rounded), (15, 25)) != want


def test_halves_go_to_the_even_count(tmp_path: Path) -> None:
    file = write(tmp_path / "floor.json", [0, 1, 2, 3, 4], [0, 5, 15, 25, 100])
    assert read_floors(file, (10, 20)) == [10, 10, 12, 12, 20]


@given(
    means=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    low=st.integers(0, 100),
    span=st.integers(0, 100),
)
def test_floors_stay_in_the_clamp_and_in_order(means: list[float], low: int, span: int) -> None:
    found = rescale(means, (low, low + span))
    assert all(low <= f <= low + span for f in found)
    ordered = [f for _, f in sorted(zip(means, found, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    ("floors", "means", "message"),
    [
        ([1, 2], [1.0], "different models"),
        ([1, 2], ["x", 1.0], "not a number"),
        ([1.5, 2], None, "not a count"),
        ([-1, 2], None, "not a count"),
        ([True, 2], None, "not a number"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, floors: list[object], means: list[object] | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_floors(write(tmp_path / "floor.json", floors, means), (1, 5))
