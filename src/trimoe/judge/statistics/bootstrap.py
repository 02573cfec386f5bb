"""Bootstrap intervals of paired differences, over clusters of items that repeat.

A unit is one item (difference -1, 0 or 1) or one cluster: the same problem in several languages or epochs, whose items
are not independent. Whole clusters are drawn, so the width of the interval reflects the number of clusters.
Invariants: seeded, so the same data give the same interval. Where all units agree, resampling says nothing, and the
interval is the bound on what such a sample could have missed.
Not guaranteed: coverage below about 20 clusters; docs/explanation/comparison.md has the measured coverage.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

DRAWS = 20_000
SEED = 20


@dataclass(frozen=True)
class Interval:
    """Shares. `value` is the estimate, `se` its standard error, `units` the number of clusters behind it.

    `method` is "bootstrap", or "bound" where all units agree or there are fewer than two.
    """

    value: float
    low: float
    high: float
    se: float
    units: int
    method: str


def paired_bootstrap(
    items: Iterable[tuple[Hashable, int]], confidence: float = 0.95, draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Mean of paired differences with its bootstrap interval.

    `items` are (cluster, difference) with differences -1, 0 or 1 (now right minus before right). Percentiles of the
    resampled ratio sum / size are taken, widened for the number of clusters (Hesterberg, The American Statistician 69,
    2015: the expanded percentile interval), because plain percentiles are too narrow by about (1 - 1/G) and a t factor.
    """
    sums: dict[Hashable, list[int]] = {}
    for cluster, difference in items:
        if difference not in (-1, 0, 1):
            raise ValueError(f"a paired difference of right or wrong is -1, 0 or 1, not {difference}")
        both = sums.setdefault(cluster, [0, 0])
        both[0] += difference
        both[1] += 1
    units = len(sums)
    if units == 0:
        return Interval(0.0, -1.0, 1.0, float("inf"), 0, "bound")
    kinds, counts = np.unique(np.array(list(sums.values()), dtype=np.int64), axis=0, return_counts=True)
    total, size = kinds[:, 0], kinds[:, 1]
    mean = float((counts * total).sum() / (counts * size).sum())
    if units < 2 or len(np.unique(total / size)) == 1:
        return _bound(mean, units, confidence)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(units, counts / units, size=draws)  # how often each kind of cluster is drawn
    means = (drawn @ total) / (drawn @ size)
    tail = _expanded_tail(units, confidence)
    low, high = (float(q) for q in np.quantile(means, [tail, 1 - tail]))
    return Interval(mean, low, high, cluster_error(sums.values()), units, "bootstrap")


def _bound(mean: float, units: int, confidence: float) -> Interval:
    """Interval when all units agree on `mean`: at most a share u of all clusters differs, u = 1 - tail^(1/units)."""
    u = 1 - ((1 - confidence) / 2) ** (1 / units)
    return Interval(mean, max(-1.0, mean - u * (1 + mean)), min(1.0, mean + u * (1 - mean)), 0.0, units, "bound")


def cluster_error(units: Iterable[Sequence[int]]) -> float:
    """Standard error of a mean over clusters given as (sum, size): the sandwich estimator with G / (G - 1).

    With clusters of one it is the usual s / sqrt(n). Infinite below two clusters: one cluster has no spread.
    """
    table = np.array(list(units), dtype=np.float64)
    g = len(table)
    if g < 2:
        return float("inf")
    n = table[:, 1].sum()
    residuals = table[:, 0] - table[:, 1] * (table[:, 0].sum() / n)
    return float(sqrt(g / (g - 1) * float((residuals**2).sum())) / n)


def _expanded_tail(units: int, confidence: float) -> float:
    """Phi(-sqrt(G / (G - 1)) t), t the Student quantile with G - 1 degrees of freedom."""
    t = student_quantile(0.5 + confidence / 2, units - 1)
    return NormalDist().cdf(-sqrt(units / (units - 1)) * t)


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t for 0.5 <= p < 1, by bisection on its distribution function."""
    if not (0.5 <= p < 1 and degrees >= 1):
        raise ValueError(f"p {p}, degrees {degrees}")
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < p else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """By Gauss-Legendre quadrature of the density in the angle: t = sqrt(v) tan a makes it cos(a)^(v-1)."""
    if degrees > 100_000:
        return NormalDist().cdf(t)
    nodes, weights = _LEGENDRE
    angle = float(np.arctan(t / sqrt(degrees)))
    a = angle * (nodes + 1) / 2
    scale = lgamma((degrees + 1) / 2) - lgamma(degrees / 2) - 0.5 * log(np.pi)
    inside: Any = np.exp(scale + (degrees - 1) * np.log(np.cos(a)))
    return 0.5 + float((weights * inside).sum()) * angle / 2


_LEGENDRE = np.polynomial.legendre.leggauss(200)
