"""Which cut of the bundled model keeps most: methods by budget, on the demo's held-out items, by generation.

    python perf/which_cut.py OUT [--keep 24,16,12] [--only NAME,...]

Calibrates on the demo's set (training items, and the model's own passing code replies), makes every cut, and lets the
base and each cut answer the benches of the demo in this process. Prints the table of
docs/explanation/which-cut.md with exact McNemar tests against the best cut, adjusted after Holm over all rows of a
budget. A rerun resumes: statistics, cuts and replies that exist are used again.
"""

import argparse
from pathlib import Path

from trimoe.calibrate.engine import calibrate
from trimoe.choose.choose import choose
from trimoe.cut.prune import prune
from trimoe.demo import BENCHES, calibration_set
from trimoe.evaluate.evaluate import evaluate
from trimoe.evaluate.guards import NAMES
from trimoe.evaluate.log.export import rows
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.statistics.paired import holm, mcnemar_exact, paired_difference
from trimoe.model import tiny
from trimoe.model.checkpoint import open_checkpoint
from trimoe.sandbox import Policy, using

METHODS = ("random-0", "random-1", "random-2", "frequency", "reap", "ean", "v4", "v5-coder", "reap-replies", "recon")
SEQUENTIAL = "recon-sequential"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", default="24,16,12")
    parser.add_argument("--only", default=",".join([*METHODS, SEQUENTIAL]))
    parser.add_argument("--recon", type=int, default=2000, help="Positions of the reconstruction.")
    given = parser.parse_args()
    out, base = given.out, open_checkpoint(tiny.path())
    chosen = calibration_set(base, out / "calibration")
    names = given.only.split(",")
    with using(Policy()):
        _ask(base.path, "base", out)
        for keep in map(int, given.keep.split(",")):
            for name in names:
                cut = out / f"{name}-{keep}"
                sequential = keep if name == SEQUENTIAL else None
                stats = out / f"stats{sequential or ''}-{given.recon}.safetensors"
                if not stats.exists():
                    calibrate(base, chosen, stats, recon=given.recon, sequential=sequential)
                if not cut.exists():
                    prune(base.path, choose(stats, recipe="recon" if sequential else name, keep=keep), cut)
                _ask(cut, cut.name, out)
            _table(out / "runs.db", keep, names)


def _ask(model: Path, name: str, out: Path) -> None:
    evaluate(model, bench=list(BENCHES), log=out / "runs.db", name=name, ignore_guards=NAMES)


def _table(log: Path, keep: int, names: list[str]) -> None:
    right: dict[str, dict[tuple[str, str], bool]] = {}
    with RunLog(log, create=False) as reader:
        for row in rows(reader):
            right.setdefault(row["name"], {})[row["bench"], row["doc_id"]] = row["correct"] is True
    base = right["base"]
    counts = {name: sum(right[f"{name}-{keep}"].values()) for name in names}
    best = max(names, key=lambda name: counts[name])
    flips = {name: _flips(right[f"{name}-{keep}"], right[f"{best}-{keep}"]) for name in names if name != best}
    adjusted = dict(zip(flips, holm([mcnemar_exact(*pair) for pair in flips.values()]), strict=True))
    print(f"\nkeep {keep}: base {sum(base.values())} of {len(base)} right")
    print(f"| cut | right | of base's | {best} minus it | Holm p |\n|---|---|---|---|---|", flush=True)
    for name in names:
        mine = right[f"{name}-{keep}"]
        held = sum(mine[key] for key in base if base[key]) / sum(base.values())
        text = "|  |  |"
        if name != best:
            points = [f"{100 * v:+.1f}" for v in paired_difference(len(base), *flips[name])]
            text = f"| {points[0]} [{points[1]}, {points[2]}] | {adjusted[name]:.1g} |"
        print(f"| {name} | {100 * counts[name] / len(mine):.1f} % | {100 * held:.1f} % {text}", flush=True)


def _flips(mine: dict[tuple[str, str], bool], best: dict[tuple[str, str], bool]) -> tuple[int, int]:
    """Items that only `mine` has right, and items that only `best` has right."""
    return sum(mine[k] and not best[k] for k in mine), sum(best[k] and not mine[k] for k in mine)


if __name__ == "__main__":
    main()
