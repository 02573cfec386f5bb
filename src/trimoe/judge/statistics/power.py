"""Power of the exact McNemar test, and the smallest effect that it detects.

Invariants: powers are exact binomial sums without approximation, and the rejection rule is that of `mcnemar_exact`.
Not guaranteed: the share of flips is the observed one, which is an estimate itself.
"""

from functools import cache
from math import lgamma

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def power(n: int, effect: float, flips: float, alpha: float = 0.05) -> float:
    """Probability that the exact test rejects with n pairs, a true difference `effect` and a share `flips` of flips.

    All are in [0, 1]; flips >= effect, because each point of difference needs a flip.
    """
    if n < 0 or not 0 <= effect <= flips <= 1:
        raise ValueError(f"n {n}, effect {effect}, flips {flips}")
    if n == 0 or flips == 0:
        return 0.0
    lean = (flips + effect) / (2 * flips)  # probability that a flip has the direction of the effect
    weights = _binomial(n, flips)
    spread = 8 * (n * flips * (1 - flips)) ** 0.5 + 8
    first, last = max(0, int(n * flips - spread)), min(n, int(n * flips + spread) + 1)
    total = 0.0
    for m in range(first, last + 1):
        k = critical(m, alpha)
        if k >= 0:
            pmf = _binomial(m, lean)
            total += float(weights[m] * (pmf[: k + 1].sum() + pmf[m - k :].sum()))
    return min(1.0, total)


@cache
def critical(m: int, alpha: float = 0.05) -> int:
    """The largest count of the rarer kind of m flips that is significant; -1 if none is (m < 6 at 5 %)."""
    if m == 0:
        return -1
    cumulative = 2 * np.cumsum(_binomial(m, 0.5)[: (m - 1) // 2 + 1])
    return int(np.searchsorted(cumulative, alpha, side="right")) - 1


def detectable(n: int, flips: float, alpha: float = 0.05, wanted: float = 0.8) -> float | None:
    """The smallest true difference (a share) that the test finds with probability `wanted` at n pairs.

    `flips` is the share of pairs expected to flip without it; a larger difference brings its own flips. None when even
    n flips of one kind are not significant (n < 6 at 5 %).
    """
    if power(n, 1.0, 1.0, alpha) < wanted:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):  # to a millionth; power grows with the effect
        middle = (low + high) / 2
        enough = power(n, middle, max(flips, middle), alpha) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def _binomial(n: int, p: float) -> Array:
    """All n + 1 probabilities."""
    if p in (0.0, 1.0):
        sure = np.zeros(n + 1)
        sure[0 if p == 0.0 else n] = 1.0
        return sure
    k = np.arange(n + 1)
    logs = _log_factorials(n)
    out: Array = np.exp(logs[n] - logs[k] - logs[n - k] + k * np.log(p) + (n - k) * np.log1p(-p))
    return out


def _log_factorials(n: int) -> Array:
    size = 64
    while size < n + 1:
        size *= 2
    return _table(size)


@cache
def _table(size: int) -> Array:
    return np.array([lgamma(i + 1) for i in range(size)])
