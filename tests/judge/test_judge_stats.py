"""Statistics against scipy and statsmodels."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from trimoe.judge.statistics.paired import (
    holm,
    mcnemar_exact,
    mean_difference,
    paired_difference,
    sign_flip_exact,
    wilson,
)


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


def test_holm() -> None:
    rng = np.random.default_rng(2)
    for size in [1, 2, 3, 9, 30] * 5:
        p_values = np.round(rng.random(size) ** rng.integers(1, 9), rng.integers(1, 6)).tolist()  # with ties
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]), abs=1e-12)


def test_holm_of_nothing() -> None:
    assert holm([]) == []


def test_published_intervals() -> None:
    """R: PropCIs::scoreci.mp(25, 28, 618, 0.90); Fagerland et al., Stat. Med. 33, 2014, airway reactivity."""
    assert paired_difference(618, 25, 28, 0.90) == pytest.approx((3 / 618, -0.0148, 0.0247), abs=5e-5)
    assert paired_difference(21, 7, 1) == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)


def by_inversion(n: int, b: int, c: int, confidence: float) -> tuple[float, float]:
    """The score test, its nuisance parameter found by maximising the likelihood, inverted by a root finder."""

    def score(tested: float) -> float:
        def surprise(lost: float) -> float:
            shares, counts = (lost, lost + tested, 1 - 2 * lost - tested), (b, c, n - b - c)
            return -sum(k * np.log(max(p, 1e-300)) for k, p in zip(counts, shares, strict=True) if k)

        ends = (max(0.0, -tested), (1 - tested) / 2)
        best = minimize_scalar(surprise, bounds=ends, method="bounded", options={"xatol": 1e-14}).x
        lost = min([float(best), *ends], key=surprise)
        return float((c - b - n * tested) / np.sqrt(n * (2 * lost + tested - tested * tested)))

    z, middle, edge = norm.ppf(0.5 + confidence / 2), (c - b) / n, 1 - 1e-9
    low = -1.0 if score(-edge) < z else brentq(lambda d: score(d) - z, -edge, max(-edge, middle - 1e-9))
    high = 1.0 if score(edge) > -z else brentq(lambda d: score(d) + z, min(edge, middle + 1e-9), edge)
    return low, high


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(
    ("n", "b", "c"), [(55, 6, 3), (164, 0, 4), (164, 9, 0), (198, 24, 24), (30, 1, 1), (400, 31, 12), (8, 5, 2)]
)
def test_paired_interval_is_the_inverted_score_test(n: int, b: int, c: int, confidence: float) -> None:
    assert paired_difference(n, b, c, confidence)[1:] == pytest.approx(by_inversion(n, b, c, confidence), abs=1e-5)


def test_without_flips_the_paired_interval_is_closed_form() -> None:
    z = norm.ppf(0.975)
    for n in (1, 30, 164, 10_000):
        bound = z * z / (n + z * z)
        assert paired_difference(n, 0, 0) == pytest.approx((0.0, -bound, bound), abs=1e-12)
    assert paired_difference(0, 0, 0) == (0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="3 and 2 flips of 4 pairs"):
        paired_difference(4, 3, 2)


@settings(max_examples=200)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2000))
def test_paired_interval_is_sane(b: int, c: int, same: int) -> None:
    n = b + c + same
    difference, low, high = paired_difference(n, b, c)
    assert -1 <= low <= difference <= high <= 1
    assert paired_difference(n, c, b) == pytest.approx((-difference, -high, -low), abs=1e-9)
    if n > 0:
        _, wide_low, wide_high = paired_difference(n, b, c, 0.99)
        assert wide_low <= low
        assert wide_high >= high


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
