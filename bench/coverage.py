"""How often the 95 % intervals of a paired difference hold the truth: exactly, by summing over all tables of flips.

    python bench/coverage.py [--json]

Each line is one setting: n pairs, the chances that a pair is lost and gained, the flips expected, and the coverage of
Tango's score interval and of the bootstrap (20,000 draws, as in use), in percent. Where few flips are expected there
are few tables to come out, and no interval that does not toss a coin can cover exactly 95 %.
"""

import argparse
import json
from collections.abc import Callable
from functools import cache

from scipy.stats import binom

from trimoe.judge.bootstrap import paired_bootstrap
from trimoe.judge.stats import paired_difference

SIZES = (30, 55, 100, 164, 198, 400)  # AIME, LCB-55, GSM8K, HumanEval, GPQA, and larger
CHANCES = ((0.01, 0.01), (0.02, 0.02), (0.04, 0.01), (0.05, 0.05), (0.10, 0.06), (0.10, 0.10), (0.20, 0.05))
NEGLIGIBLE = 1e-7  # tables rarer than this are counted as missed

Interval = Callable[[int, int, int], tuple[float, float]]


@cache
def score(n: int, b: int, c: int) -> tuple[float, float]:
    """Tango's."""
    return paired_difference(n, b, c)[1:]


@cache
def drawn(n: int, b: int, c: int) -> tuple[float, float]:
    """The bootstrap's, of items that do not repeat."""
    made = paired_bootstrap(enumerate([-1] * b + [1] * c + [0] * (n - b - c)))
    return made.low, made.high


def coverage(interval: Interval, n: int, lost: float, gained: float) -> float:
    """Share of all tables, by their probability, whose interval holds gained - lost."""
    covered = 0.0
    for b in range(n + 1):
        first = float(binom.pmf(b, n, lost))
        for c in range(n - b + 1) if first > NEGLIGIBLE else ():
            weight = first * float(binom.pmf(c, n - b, gained / (1 - lost)))
            if weight > NEGLIGIBLE:
                low, high = interval(n, b, c)
                covered += weight * (low - 1e-12 <= gained - lost <= high + 1e-12)
    return covered


def main() -> None:
    """All settings, by expected flips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON list and nothing else")
    as_json = parser.parse_args().as_json
    results = []
    for n, (lost, gained) in sorted(((n, c) for n in SIZES for c in CHANCES), key=lambda at: at[0] * sum(at[1])):
        result = {"pairs": n, "lost": lost, "gained": gained, "flips": round(n * (lost + gained), 1),
                  "score": round(100 * coverage(score, n, lost, gained), 1),
                  "bootstrap": round(100 * coverage(drawn, n, lost, gained), 1)}  # fmt: skip
        results.append(result)
        if not as_json:
            print("  ".join(f"{name} {value:>5}" for name, value in result.items()), flush=True)
    if as_json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
