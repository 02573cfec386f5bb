"""Statistics against scipy and statsmodels."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from trimoe.judge.stats import holm, mcnemar_exact, mean_difference, paired_difference, sign_flip_exact, wilson


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson(counts: tuple[int, int]) -> None:
    k, n = counts
    assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="3 right answers out of 2"):
        wilson(3, 2)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar(b: int, c: int) -> None:
    p = mcnemar_exact(b, c)
    assert p == pytest.approx(mcnemar([[5, b], [c, 5]], exact=True).pvalue, rel=1e-9)
    if b + c:
        assert p == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-9)
    assert p == mcnemar_exact(c, b)


def test_mcnemar_of_many() -> None:
    assert 0 < mcnemar_exact(5000, 5200) < 0.06
    assert mcnemar_exact(0, 0) == 1.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]), abs=1e-12)


def test_holm_of_nothing() -> None:
    assert holm([]) == []


@pytest.mark.parametrize(("both", "b", "c", "neither"), [(40, 20, 20, 10), (9, 3, 6, 2), (0, 0, 7, 0), (50, 0, 0, 0)])
def test_without_correlation_it_is_newcombe_s_independent_interval(both: int, b: int, c: int, neither: int) -> None:
    assert both * neither == b * c
    n = both + b + c + neither
    low, high = confint_proportions_2indep(both + c, n, both + b, n, method="newcomb", compare="diff")
    assert paired_difference(both, b, c, neither) == pytest.approx(((c - b) / n, low, high), abs=1e-9)


counts = st.integers(0, 60)


@settings(max_examples=200)
@given(counts, counts, counts, counts)
def test_interval_is_sane(both: int, b: int, c: int, neither: int) -> None:
    difference, low, high = paired_difference(both, b, c, neither)
    assert -1 <= low <= difference <= high <= 1
    swapped = paired_difference(both, c, b, neither)
    assert swapped == pytest.approx((-difference, -high, -low), abs=1e-9)


def test_correlation_narrows_the_interval() -> None:
    _, low, high = paired_difference(80, 5, 5, 110)
    _, wide_low, wide_high = paired_difference(36, 49, 49, 66)
    assert high - low < wide_high - wide_low


def test_coverage() -> None:
    rng = random.Random(0)
    shares = (0.75, 0.08, 0.04, 0.13)  # both, lost, gained, neither
    truth, hits, draws = shares[2] - shares[1], 0, 1000
    for _ in range(draws):
        table = [0, 0, 0, 0]
        for cell in rng.choices(range(4), shares, k=100):
            table[cell] += 1
        _, low, high = paired_difference(*table)
        hits += low <= truth <= high
    assert abs(hits / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_sign_flips_of_single_units_are_mcnemar(b: int, c: int, same: int) -> None:
    assert sign_flip_exact([-1] * b + [1] * c + [0] * same) == pytest.approx(mcnemar_exact(b, c), rel=1e-12)


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_sign_flips_equal_enumeration(values: list[int]) -> None:
    patterns = list(itertools.product((-1, 1), repeat=len(values)))
    far = sum(abs(sum(s * abs(v) for s, v in zip(p, values, strict=True))) >= abs(sum(values)) for p in patterns)
    assert sign_flip_exact(values) == pytest.approx(far / len(patterns), rel=1e-12)


def test_mean_difference_covers() -> None:
    rng = np.random.default_rng(1)
    hits, rounds = 0, 2000
    for _ in range(rounds):
        mine, others = rng.random(200) < 0.85, rng.random((3, 200)) < 0.7
        mean, low, high = mean_difference([float(x) for x in mine - others.mean(0)])
        assert low <= mean <= high
        hits += low <= 0.15 <= high
    assert 0.935 <= hits / rounds <= 0.965
