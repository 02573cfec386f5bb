"""Statistics of accuracies: intervals, exact paired tests, corrections. Pure functions, no dependencies.

Sources: Wilson (1927); McNemar's test in its exact two-sided binomial form; Newcombe (1998), method 10, for the
difference of paired proportions; Holm (1979).
"""

import math

Z95 = 1.959963984540054


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion, in [0, 1]; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p of `gained` against `lost` flips: twice the smaller binomial tail at 1/2, at most 1."""
    n, k = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2.0 * tail / 2.0**n) if n < 1000 else min(1.0, 2 * math.exp(math.log(tail) - n * math.log(2)))


def paired_difference(both: int, gained: int, lost: int, neither: int) -> tuple[float, float, float]:
    """Second minus first accuracy with its 95 % interval (Newcombe's method 10), from a paired 2 x 2 table.

    `gained`: wrong before, right after; `lost`: right before, wrong after.
    """
    n = both + gained + lost + neither
    if n == 0:
        return 0.0, -1.0, 1.0
    first, second = (both + lost) / n, (both + gained) / n
    l1, u1 = wilson(both + lost, n)
    l2, u2 = wilson(both + gained, n)
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    phi = 0.0
    if product > 0:
        cross = both * neither - gained * lost
        phi = (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(product)
    d = second - first
    low = d - math.sqrt(max(0.0, (second - l2) ** 2 - 2 * phi * (second - l2) * (u1 - first) + (u1 - first) ** 2))
    high = d + math.sqrt(max(0.0, (u2 - second) ** 2 - 2 * phi * (u2 - second) * (first - l1) + (first - l1) ** 2))
    return d, max(-1.0, low), min(1.0, high)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
