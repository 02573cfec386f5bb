"""Statistics of paired right-or-wrong answers. Pure; no dependency beyond the standard library.

`b` and `c` are the two kinds of flips: b = right before and wrong now, c = wrong before and right now.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of k right answers out of n. (0, 1) when n is 0.

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

    It is 0 at p = 0 and p = 1, where only the Wilson interval is informative.
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
    """Two-sided exact McNemar test: probability of flips at least this uneven if both kinds are equally likely."""
    if b < 0 or c < 0:
        raise ValueError(f"counts of flips cannot be negative: {b}, {c}")
    n = b + c
    tail = ways = 1  # of 0 flips of the rarer kind; then of 1, 2, ...
    for i in range(min(b, c)):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return float(min(1.0, 2 * tail / (1 << n)))  # integers of any size; the division rounds once


def sign_flip_exact(values: Sequence[int]) -> float:
    """Two-sided exact sign-flip test of paired integer differences (Fisher's randomisation test).

    The probability of a sum at least this far from zero if each difference is as likely with the other sign. With
    values of -1, 0 and 1 it is McNemar's exact test.
    """
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
    """Holm's step-down adjustment, in the order given. Controls the probability of any false claim in the family."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def paired_difference(n: float, b: float, c: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Now minus before of n pairs, with its interval: (difference, low, high), as shares of all pairs.

    Tango's score interval (Statistics in Medicine 17, 1998, 891-908): the differences that the score test does not
    reject, its variance taken under the difference that is tested. With no flips it is z^2 / (n + z^2) either way.
    Pairs that did not flip count only through n. (0, -1, 1) when n is 0. Fractions are for effective sample sizes.
    """
    if min(n, b, c) < 0 or b + c > n:
        raise ValueError(f"{b} and {c} flips of {n} pairs")
    if n == 0:
        return 0.0, -1.0, 1.0
    difference = (c - b) / n
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    # The score falls as the tested difference grows, from above z at -1 to below -z at 1.
    return difference, _where_score(n, b, c, z, -1.0, difference), _where_score(n, b, c, -z, difference, 1.0)


def clustered_difference(n: int, b: int, c: int, error: float | None, clusters: int) -> tuple[float, float, float]:
    """`paired_difference` for items that repeat in `clusters`, with the effective number of independent pairs.

    That number is n divided by the design effect: the square of `error` (standard error of the difference over
    clusters) over the standard error of single items, at least 1. Where it cannot be measured (`error` None, or no
    flips) every cluster counts once.
    """
    plain = difference_error(n, b, c)
    effect = max(1.0, (error / plain) ** 2) if plain and error is not None else n / clusters if clusters else 1.0
    return paired_difference(n / effect, b / effect, c / effect)


def _where_score(n: float, b: float, c: float, target: float, low: float, high: float) -> float:
    """The tested difference between `low` and `high` whose score is `target`, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(n, b, c, middle) > target else (low, middle)
    return (low + high) / 2


def _score(n: float, b: float, c: float, tested: float) -> float:
    """Tango's statistic: standardised distance of (c - b) / n from a tested difference.

    The share of pairs that flip from right to wrong is its maximum likelihood estimate if the difference is `tested`.
    """
    half = (2 * n - c + b) * tested - b - c
    root = sqrt(max(0.0, half * half + 8 * n * b * tested * (1 - tested)))
    lost = (root - half) / (4 * n)
    variance = n * (2 * lost + tested * (1 - tested))
    return (c - b - n * tested) / sqrt(variance) if variance > 0 else 0.0
