"""The tolerance rule, against numpy's own and by cases."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimoe.sandbox.inside.compare import same, same_as_evalplus, shown


def by_numpy(out: Any, exp: Any, atol: float) -> bool:
    """The rule as evalplus 0.3.1 words it (eval/__init__.py, unsafe_execute), for one input."""
    listed = isinstance(exp, list | tuple)
    try:
        exact = out == exp
        if atol == 0 and (isinstance(exp, float) or (listed and exp and all(isinstance(i, float) for i in exp))):
            atol = 1e-6
        if not exact and atol != 0:
            assert type(out) is type(exp)
            if listed:
                assert len(out) == len(exp)
            assert np.allclose(out, exp, rtol=1e-07, atol=atol)
        else:
            assert exact
    except (AssertionError, TypeError, ValueError, OverflowError):
        return False
    return True


FLOATS = st.one_of(st.floats(), st.floats(0, 1e3))
VALUES = st.one_of(
    FLOATS,
    st.integers(),
    st.booleans(),
    st.none(),
    st.text(max_size=2),
    st.lists(FLOATS, max_size=3),
    st.tuples(FLOATS, FLOATS),
    st.lists(st.lists(FLOATS, min_size=2, max_size=2), max_size=2),
    st.lists(st.integers(), max_size=2),
)


@given(VALUES, VALUES, st.sampled_from([0, 1e-6, 1e-4]))
def test_agrees_with_numpy_on_anything(out: Any, exp: Any, atol: float) -> None:
    assert same_as_evalplus(out, exp, atol) == by_numpy(out, exp, atol)


@given(FLOATS, st.floats(-3e-6, 3e-6), st.sampled_from([0, 1e-6, 1e-4]))
def test_agrees_with_numpy_near_the_edge(exp: float, off: float, atol: float) -> None:
    for out in (exp + off, exp * (1 + off), [exp + off], (exp, exp + off)):
        due = type(out)([exp] * len(out)) if isinstance(out, list | tuple) else exp
        assert same_as_evalplus(out, due, atol) == by_numpy(out, due, atol)


@pytest.mark.parametrize(
    ("out", "exp", "atol", "expected"),
    [
        (3, 3.0, 0, True),
        (True, 1, 0, True),
        ((1, 2), [1, 2], 0, False),
        ([1.0, 2.0], (1.0, 2.0), 1e-6, False),
        (1, 1.0 + 1e-9, 0, False),
        (1.0, 1.0 + 1e-9, 0, True),
        (np.float64(1.0), 1.0 + 1e-9, 0, False),
        (math.nan, math.nan, 1e-6, False),
        (math.inf, math.inf, 0, True),
        (math.inf, 1e308, 1e-4, False),
        ([], [1.0], 0, False),
        ([1.0], [1.0, 2.0], 0, False),
        ("a", "b", 1e-6, False),
        (None, 0.0, 0, False),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 0, False),
        (np.array([1, 2]), [1, 2], 0, False),
        (10**400, 10**400 + 1, 1e-6, False),
        ({2, 1}, {1, 2}, 0, True),
        (-0.0, 0.0, 0, True),
    ],
)
def test_cases(out: Any, exp: Any, atol: float, expected: bool) -> None:
    assert same_as_evalplus(out, exp, atol) is expected


def test_any_value_can_be_shown() -> None:
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown("x" * 100, 10) == "'" + "x" * 9
    assert shown(1 << 100_000) == "<a long int>"
    assert shown([1 << 100_000]) == "<a long list>"


def test_same_never_raises() -> None:
    assert not same(np.array([1, 2]), np.array([1, 2, 3]))
    assert not same(np.array([1, 2]), [1, 2])
    assert same(np.array(3), 3)
