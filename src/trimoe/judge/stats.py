"""The statistics of paired right-or-wrong answers. Pure; no dependency beyond the standard library.

`b` and `c` are the two kinds of flips everywhere: b = right before and wrong now, c = wrong before and right now.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of k right answers out of n. (0, 1) when n is 0: nothing is known.

    Fractions are for effective sample sizes: k = share x n / design effect.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} right answers out of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = k / n, z * z / n
    centre = share + weight / 2
    spread = z * sqrt(share * (1 - share) / n + weight / (4 * n))
    low, high = (centre - spread) / (1 + weight), (centre + spread) / (1 + weight)
    return (0.0 if k == 0 else low), (1.0 if k == n else high)


def standard_error(k: int, n: int) -> float | None:
    """Binomial standard error of k right answers out of n, sqrt(p (1 - p) / n); None when n is 0.

    It is 0 at p = 0 and p = 1, where it says nothing: read the Wilson interval there.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} right answers out of {n}")
    return sqrt(k / n * (1 - k / n) / n) if n else None


def difference_error(n: int, b: int, c: int) -> float | None:
    """Standard error of the paired difference (c - b) / n: sqrt((b + c - (c - b)^2 / n)) / n; None when n is 0."""
    if min(n, b, c) < 0 or b + c > n:
        raise ValueError(f"{b} and {c} flips of {n} pairs")
    return sqrt(max(0.0, b + c - (c - b) ** 2 / n)) / n if n else None


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar test: how probable flips at least this uneven are when both ways are equally likely."""
    if b < 0 or c < 0:
        raise ValueError(f"counts of flips cannot be negative: {b}, {c}")
    n = b + c
    tail = sum(comb(n, i) for i in range(min(b, c) + 1))
    return float(min(1.0, 2 * tail / (1 << n)))  # integers of any size; the division rounds once


def sign_flip_exact(values: Sequence[int]) -> float:
    """Two-sided exact test of paired differences in whole units: how probable a sum at least this far from zero is when
    each difference is as likely with the other sign (Fisher's randomisation test). With values of -1, 0 and 1 it is
    McNemar's exact test."""
    sizes = [abs(v) for v in values if v]
    ways = {0: 1}  # sum -> number of sign patterns
    for size in sizes:
        following: dict[int, int] = {}
        for total, count in ways.items():
            following[total + size] = following.get(total + size, 0) + count
            following[total - size] = following.get(total - size, 0) + count
        ways = following
    seen = abs(sum(values))
    extreme = sum(count for total, count in ways.items() if abs(total) >= seen)
    return float(extreme / (1 << len(sizes)))


def mean_difference(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences with its normal interval: (mean, low, high). (0, -1, 1) for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0, -1.0, 1.0
    mean = sum(values) / n
    spread = sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) * NormalDist().inv_cdf(0.5 + confidence / 2)
    return mean, max(-1.0, mean - spread), min(1.0, mean + spread)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given. Controls the chance of any false claim in the family."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def paired_difference(both: int, b: int, c: int, neither: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Now minus before, with its interval: (difference, low, high), as shares of all pairs.

    Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998, method 10): two Wilson
    intervals, combined with the correlation of the pairs. It stays inside [-1, 1] and works with zero flips.
    """
    counts = (both, b, c, neither)
    if min(counts) < 0:
        raise ValueError(f"counts cannot be negative: {counts}")
    n = sum(counts)
    if n == 0:
        return 0.0, -1.0, 1.0
    before, now = (both + b) / n, (both + c) / n
    low_before, high_before = wilson(both + b, n, confidence)
    low_now, high_now = wilson(both + c, n, confidence)
    phi = _correlation(both, b, c, neither)
    difference = now - before
    down = _combine(now - low_now, high_before - before, phi)
    up = _combine(high_now - now, before - low_before, phi)
    return difference, max(-1.0, difference - down), min(1.0, difference + up)


def _combine(first: float, second: float, phi: float) -> float:
    return sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def _correlation(both: int, b: int, c: int, neither: int) -> float:
    """Phi of the 2 x 2 table, its numerator continuity-corrected towards zero as the method asks; 0 if undefined."""
    scale = (both + b) * (c + neither) * (both + c) * (b + neither)
    if scale == 0:
        return 0.0
    covariance: float = both * neither - b * c
    if covariance > 0:
        covariance = max(0.0, covariance - (both + b + c + neither) / 2)
    return covariance / sqrt(scale)
