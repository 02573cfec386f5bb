"""Coverage of the 95 % intervals for paired differences: exact, by summation over all tables of flips.

    python perf/coverage.py [--json]

Each line is one setting: n pairs, the probabilities that a pair is lost and gained, the expected number of flips, and
the coverage in percent of Tango's score interval and of the bootstrap (20,000 draws, as in use). If few flips are
expected, few tables are possible, and no deterministic interval can cover exactly 95 %.

The last lines are for items that repeat: problems asked three times each, simulated (`--draws` seeded samples). The
smaller `alike`, the more the flips of one problem are correlated.
"""

import argparse
import json
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.stats import binom

from trimoe.judge.statistics.bootstrap import cluster_error, paired_bootstrap
from trimoe.judge.statistics.paired import clustered_difference, paired_difference

SIZES = (30, 55, 100, 164, 198, 400)  # AIME, LCB-55, GSM8K, HumanEval, GPQA, and larger
CHANCES = ((0.01, 0.01), (0.02, 0.02), (0.04, 0.01), (0.05, 0.05), (0.10, 0.06), (0.10, 0.10), (0.20, 0.05))
REPEATED = (  # problems, lost, gained, alike
    *((100, 0.01, 0.005, 3), (100, 0.02, 0.02, 3), (100, 0.03, 0.01, 3), (100, 0.05, 0.05, 30)),
    *((100, 0.10, 0.05, 3), (100, 0.04, 0.04, 0.5), (30, 0.10, 0.05, 3)),
)
NEGLIGIBLE = 1e-7  # less likely tables count as not covered

Interval = Callable[[int, int, int], tuple[float, float]]


@cache
def score(n: int, b: int, c: int) -> tuple[float, float]:
    """Tango's score interval."""
    return paired_difference(n, b, c)[1:]


@cache
def drawn(n: int, b: int, c: int) -> tuple[float, float]:
    """The bootstrap interval for items that do not repeat."""
    made = paired_bootstrap(enumerate([-1] * b + [1] * c + [0] * (n - b - c)))
    return made.low, made.high


def coverage(interval: Interval, n: int, lost: float, gained: float) -> float:
    """Total probability of the tables whose interval contains gained - lost."""
    covered = 0.0
    for b in range(n + 1):
        first = float(binom.pmf(b, n, lost))
        for c in range(n - b + 1) if first > NEGLIGIBLE else ():
            weight = first * float(binom.pmf(c, n - b, gained / (1 - lost)))
            if weight > NEGLIGIBLE:
                low, high = interval(n, b, c)
                covered += weight * (low - 1e-12 <= gained - lost <= high + 1e-12)
    return covered


def repeated(problems: int, lost: float, gained: float, alike: float, draws: int) -> tuple[float, float]:
    """Shares of draws whose score interval and bootstrap interval contain the truth; each problem has its own rates."""
    rng = np.random.default_rng(4)
    chances = [rng.beta(p * alike, (1 - p) * alike, (draws, problems, 1)) for p in (lost, gained)]
    u = rng.random((draws, problems, 3))
    held = np.zeros(2)
    for flips in np.where(u < chances[0], -1, np.where(u > 1 - chances[1], 1, 0)):
        made = paired_bootstrap((i, int(flip)) for i, row in enumerate(flips) for flip in row)
        error = cluster_error([(int(row.sum()), 3) for row in flips])
        counts = int((flips < 0).sum()), int((flips > 0).sum())
        _, low, high = clustered_difference(3 * problems, *counts, error, problems)
        held += [low <= gained - lost <= high, made.low <= gained - lost <= made.high]
    return float(held[0] / draws), float(held[1] / draws)


def main() -> None:
    """Print all settings by expected number of flips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON list and nothing else")
    parser.add_argument("--draws", type=int, default=2000, help="samples per setting of repeated items")
    options = parser.parse_args()
    as_json = options.as_json
    results = []
    for n, (lost, gained) in sorted(((n, c) for n in SIZES for c in CHANCES), key=lambda at: at[0] * sum(at[1])):
        result = {
            "pairs": n,
            "lost": lost,
            "gained": gained,
            "flips": round(n * (lost + gained), 1),
            "score": round(100 * coverage(score, n, lost, gained), 1),
            "bootstrap": round(100 * coverage(drawn, n, lost, gained), 1),
        }
        results.append(result)
        if not as_json:
            print("  ".join(f"{name} {value:>5}" for name, value in result.items()), flush=True)
    for problems, lost, gained, alike in REPEATED:
        of_score, of_bootstrap = repeated(problems, lost, gained, alike, options.draws)
        result = {
            "problems": problems,
            "lost": lost,
            "gained": gained,
            "alike": alike,
            "flips": round(3 * problems * (lost + gained), 1),
            "score": round(100 * of_score, 1),
            "bootstrap": round(100 * of_bootstrap, 1),
        }
        results.append(result)
        if not as_json:
            print("  ".join(f"{name} {value:>5}" for name, value in result.items()), flush=True)
    if as_json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
