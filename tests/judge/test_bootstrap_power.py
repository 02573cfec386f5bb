"""Intervals and power: against scipy, by simulation, and at the edges. All draws are seeded."""

import numpy as np
import pytest
from scipy.stats import binom, bootstrap, t
from statsmodels.regression.linear_model import OLS

from trimoe.judge.statistics.bootstrap import Interval, cluster_error, paired_bootstrap, student_quantile
from trimoe.judge.statistics.paired import (
    clustered_difference,
    difference_error,
    mcnemar_exact,
    paired_difference,
    sign_flip_exact,
    standard_error,
    wilson,
)
from trimoe.judge.statistics.power import critical, detectable, power


@pytest.mark.parametrize("degrees", [1, 2, 5, 29, 163, 1171, 200_000])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.999])
def test_student_quantile(degrees: int, p: float) -> None:
    assert student_quantile(p, degrees) == pytest.approx(t.ppf(p, degrees), rel=2e-5, abs=1e-9)


def test_standard_errors_of_the_card() -> None:
    """Protocol section 9: LCB-55 4.8, AIME 8.8, GPQA 3.3, GSM8K 3.5, HE 1.0, HE+ 2.0, ARC 0.62 points."""
    card = [(47, 55, 4.8), (11, 30, 8.8), (136, 198, 3.3), (86, 100, 3.5), (161, 164, 1.0), (152, 164, 2.0)]
    for k, n, points in card:
        error = standard_error(k, n)
        assert error is not None
        assert round(100 * error, 1) == pytest.approx(points, abs=0.051)
    assert standard_error(0, 0) is None
    with pytest.raises(ValueError, match="3 right"):
        standard_error(3, 2)


def test_cluster_error_is_the_sandwich_of_statsmodels() -> None:
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 40, 200)
    values = rng.integers(-1, 2, 200)
    fit = OLS(values.astype(float), np.ones(200)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    present = np.unique(groups)
    units = [(int(values[groups == g].sum()), int((groups == g).sum())) for g in present]
    g = len(present)
    assert cluster_error(units) == pytest.approx(float(fit.bse[0]) * (g / (g - 1)) ** 0.5, rel=1e-9)
    assert difference_error(100, 8, 3) == pytest.approx(float(np.std([-1] * 8 + [1] * 3 + [0] * 89) / 10), rel=1e-12)


def test_bootstrap_agrees_with_scipy_s_percentiles() -> None:
    data = np.array([-1] * 30 + [1] * 18 + [0] * 252)
    theirs = bootstrap((data,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1))
    ours = paired_bootstrap(list(enumerate(data.tolist())))
    low, high = theirs.confidence_interval
    assert ours.value == pytest.approx(-0.04)
    assert (ours.low, ours.high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))
    assert ours == paired_bootstrap(list(enumerate(data.tolist())))


def test_clusters_make_the_interval_as_wide_as_their_number_justifies() -> None:
    """Each item three times: three times the rows, no more knowledge."""
    once = [(i, d) for i, d in enumerate([-1] * 12 + [1] * 4 + [0] * 84)]
    thrice = [row for row in once for _ in range(3)]
    alone = [(i, d) for i, (_, d) in enumerate(thrice)]
    single, clustered, naive = paired_bootstrap(once), paired_bootstrap(thrice), paired_bootstrap(alone)
    assert clustered.value == pytest.approx(single.value)
    assert (clustered.low, clustered.high) == (pytest.approx(single.low), pytest.approx(single.high))
    assert clustered.units == 100
    assert naive.high - naive.low < 0.65 * (clustered.high - clustered.low)


def test_without_flips_the_interval_is_a_bound_and_not_a_point() -> None:
    still = paired_bootstrap([(i, 0) for i in range(100)])
    assert still == Interval(0.0, -still.high, still.high, 0.0, 100, "bound")
    assert still.high == pytest.approx(1 - 0.025 ** (1 / 100))
    all_lost = paired_bootstrap([(i, -1) for i in range(20)])
    assert (all_lost.value, all_lost.low) == (-1.0, -1.0)
    assert -1.0 < all_lost.high < -0.5
    assert paired_bootstrap([]).method == "bound"
    assert (paired_bootstrap([]).low, paired_bootstrap([]).high) == (-1.0, 1.0)
    one = paired_bootstrap([("a", 1)])
    assert one.low < 0 < one.high
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        paired_bootstrap([("a", 2)])


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


@pytest.mark.parametrize(("n", "b", "c"), [(100, 0.10, 0.06), (164, 0.08, 0.05), (198, 0.12, 0.12), (400, 0.05, 0.02)])
def test_paired_intervals_cover_what_they_say(n: int, b: float, c: float) -> None:
    rng = np.random.default_rng(11)
    shares = [0.7 - b, b, c, 0.3 - c]
    boot = []
    for _, lost, gained, _ in rng.multinomial(n, shares, size=1500).tolist():
        units = enumerate([-1] * lost + [1] * gained + [0] * (n - lost - gained))
        made = paired_bootstrap(units, draws=1000)
        boot.append((made.low, made.high))
    assert 0.935 <= covered(boot, c - b) <= 0.965


@pytest.mark.parametrize("n", [55, 100, 164, 198, 400])
@pytest.mark.parametrize(
    ("lost", "gained"), [(0.02, 0.02), (0.04, 0.01), (0.05, 0.05), (0.10, 0.06), (0.10, 0.10), (0.20, 0.05)]
)
def test_score_intervals_cover_what_they_say(n: int, lost: float, gained: float) -> None:
    """Exactly: the probability of every table of flips, summed over those whose interval holds the truth."""
    held = 0.0
    for b in range(int(binom.ppf(1 - 1e-6, n, lost)) + 1):
        for c in range(int(binom.ppf(1 - 1e-6, n, gained)) + 1):
            weight = binom.pmf(b, n, lost) * binom.pmf(c, n - b, gained / (1 - lost)) if b + c <= n else 0.0
            _, low, high = paired_difference(n, b, c)
            held += weight * (low <= gained - lost <= high)
    # With few flips few tables can come out: no interval covers exactly, and this one errs on the wide side.
    assert 0.935 <= held <= (0.965 if n * (lost + gained) >= 4.5 else 0.99)


@pytest.mark.parametrize(
    ("lost", "gained", "alike"),
    [(0.02, 0.02, 3), (0.03, 0.01, 3), (0.05, 0.05, 30), (0.10, 0.05, 3), (0.04, 0.04, 0.5)],
)
def test_score_interval_of_repeated_items_covers_what_it_says(lost: float, gained: float, alike: float) -> None:
    """100 problems in 3 languages; the smaller `alike`, the more the flips of a problem go together."""
    rng, held, draws = np.random.default_rng(4), 0, 3000
    chances = [rng.beta(p * alike, (1 - p) * alike, (draws, 100, 1)) for p in (lost, gained)]
    u = rng.random((draws, 100, 3))
    for flips in np.where(u < chances[0], -1, np.where(u > 1 - chances[1], 1, 0)):
        error = cluster_error([(int(row.sum()), 3) for row in flips])
        _, low, high = clustered_difference(300, int((flips < 0).sum()), int((flips > 0).sum()), error, 100)
        held += low <= gained - lost <= high
    assert 0.935 <= held / draws <= 0.965


def test_repeated_items_are_worth_their_clusters() -> None:
    once, thrice = paired_difference(100, 12, 4), clustered_difference(300, 36, 12, 0.0, 100)
    assert thrice == paired_difference(300, 36, 12), "never more than the items there are"
    error = cluster_error([(-3, 3)] * 12 + [(3, 3)] * 4 + [(0, 3)] * 84)
    assert clustered_difference(300, 36, 12, error, 100) == pytest.approx(once, abs=0.001)
    assert clustered_difference(300, 0, 0, 0.0, 100) == paired_difference(100, 0, 0)
    assert clustered_difference(0, 0, 0, float("inf"), 0) == (0.0, -1.0, 1.0)


def test_clustered_interval_covers_what_it_says() -> None:
    """100 problems in 3 languages whose flips go together: the naive interval is far too narrow, ours is not."""
    rng = np.random.default_rng(5)
    ours, naive = [], []
    for _ in range(1200):
        lost = rng.beta(0.3, 2.7, 100)  # each problem's own chance to be lost; 0.1 on average
        flips = -(rng.random((100, 3)) < lost[:, None]).astype(int)
        made = paired_bootstrap([(i, int(d)) for i, row in enumerate(flips) for d in row], draws=1000)
        plain = paired_bootstrap(enumerate(flips.ravel().tolist()), draws=1000)
        ours.append((made.low, made.high))
        naive.append((plain.low, plain.high))
    assert 0.935 <= covered(ours, -0.1) <= 0.965
    assert covered(naive, -0.1) < 0.92


@pytest.mark.parametrize("n", [55, 100, 164, 1172])
def test_wilson_covers_what_it_says(n: int) -> None:
    """Exact coverage, averaged over the true shares that models have."""
    shares = np.linspace(0.3, 0.95, 131)
    bounds = np.array([wilson(k, n) for k in range(n + 1)])
    hit = [float(binom.pmf(np.arange(n + 1), n, p)[(bounds[:, 0] <= p) & (p <= bounds[:, 1])].sum()) for p in shares]
    assert 0.935 <= float(np.mean(hit)) <= 0.965


def test_equal_models_raise_no_more_than_five_alarms_in_a_hundred() -> None:
    rng = np.random.default_rng(2)
    alarms = {"mcnemar": 0, "clusters": 0}
    for _ in range(1000):
        n, flips = int(rng.choice([55, 100, 164, 198, 586])), float(rng.choice([0.05, 0.1, 0.2]))
        lost, gained, _ = rng.multinomial(n, [flips / 2, flips / 2, 1 - flips])
        alarms["mcnemar"] += mcnemar_exact(int(lost), int(gained)) < 0.05
        sums = rng.choice([-3, -2, -1, 0, 1, 2, 3], 60, p=[0.02, 0.03, 0.05, 0.8, 0.05, 0.03, 0.02])
        alarms["clusters"] += sign_flip_exact(sums.tolist()) < 0.05
    assert 0 < alarms["mcnemar"] <= 50
    assert 0 < alarms["clusters"] <= 50


@pytest.mark.parametrize("m", range(1, 80))
def test_critical_counts_are_those_of_the_test(m: int) -> None:
    k = critical(m)
    assert k < 0 or mcnemar_exact(k, m - k) <= 0.05
    assert k + 1 > m // 2 or mcnemar_exact(k + 1, m - k - 1) > 0.05


@pytest.mark.parametrize(("n", "effect", "flips"), [(100, 0.1, 0.2), (164, 0.05, 0.08), (30, 0.3, 0.4)])
def test_power_is_what_simulation_finds(n: int, effect: float, flips: float) -> None:
    rng = np.random.default_rng(7)
    draws = rng.multinomial(n, [(flips - effect) / 2, (flips + effect) / 2, 1 - flips], size=20_000)
    found = np.mean([mcnemar_exact(int(b), int(c)) < 0.05 for b, c, _ in draws])
    assert power(n, effect, flips) == pytest.approx(float(found), abs=0.012)


def test_smallest_detectable_effect() -> None:
    for n, flips in ((100, 0.1), (164, 0.05), (1172, 0.03)):
        effect = detectable(n, flips)
        assert effect is not None
        assert power(n, effect, max(flips, effect)) >= 0.8
        assert power(n, effect * 0.99, max(flips, effect * 0.99)) < 0.8
    few, many = detectable(55, 0.1), detectable(550, 0.1)
    assert few is not None
    assert many is not None
    assert few > 2 * many
    assert detectable(5, 0.5) is None  # five flips one way have p = 0.0625
    assert detectable(0, 0.0) is None
    with pytest.raises(ValueError, match="effect"):
        power(10, 0.5, 0.2)
