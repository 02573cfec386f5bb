"""The knapsack against trying everything."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.errors import BadInput
from trimoe.quantize.mix.knapsack import solve

OPTION = st.tuples(st.integers(1, 60), st.floats(0, 1, allow_nan=False).map(lambda c: round(c, 3)))
GROUPS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=6)


def best(groups: list[list[tuple[int, float]]], budget: int) -> float | None:
    costs = [sum(c for _, c in pick) for pick in product(*groups) if sum(s for s, _ in pick) <= budget]
    return min(costs, default=None)


@settings(max_examples=300, deadline=None)
@given(GROUPS, st.integers(1, 300), st.sampled_from([200_000, 3]))
def test_nothing_is_cheaper(groups: list[list[tuple[int, float]]], budget: int, limit: int) -> None:
    want = best(groups, budget)
    if want is None:
        with pytest.raises(BadInput, match="no mix of types is that small"):
            solve(groups, budget)
        return
    found = solve(groups, budget, limit)
    assert found.nbytes == sum(groups[g][p][0] for g, p in enumerate(found.picks)) <= budget
    assert found.cost == pytest.approx(sum(groups[g][p][1] for g, p in enumerate(found.picks)))
    assert found.bound <= want + 1e-9, "the bound is a proof, thinned or not"
    if limit > 3:
        assert found.cost == pytest.approx(want)
        assert found.gap == 0


def test_the_depth_of_a_real_model() -> None:
    """150 groups of 8 options, sizes in tens of megabytes: exact, and a choice that fits."""
    import random

    draw = random.Random(5)
    groups = []
    for _ in range(150):
        weights, harm = draw.randint(10**6, 2 * 10**8), 10 ** draw.uniform(-3, 0)
        groups.append(
            [
                (int(weights * bits / 8), harm * 4.0**-bits * draw.uniform(0.8, 1.2))
                for bits in (2.6, 3.4, 4.25, 4.5, 5.5, 6.6, 8.5)
            ]
        )
    budget = sum(options[3][0] for options in groups)
    found = solve(groups, budget)
    assert found.nbytes <= budget
    assert found.gap <= 0.001 * found.cost
    uniform = sum(options[3][1] for options in groups)
    assert found.cost < 0.9 * uniform
