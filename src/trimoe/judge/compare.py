"""Compares runs question by question.

Invariants: only runs of the same bench spec and the same engine and sampler are compared, over the rows that both have
scored; a row that was not scored counts for nobody and is shown. p values are exact, and adjusted over the table.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.errors import RunLogError, UsageError
from trimoe.evaluate.log import Run, RunLog
from trimoe.judge.stats import holm, mcnemar_exact, mean_difference, paired_difference, sign_flip_exact, wilson


@dataclass(frozen=True)
class Row:
    """One model on one bench, against the base. Shares are in [0, 1]; the base's own rows have no difference.

    `n` rows were scored, `correct` of them right; `pairs` rows are scored in both runs, `lost` and `gained` are flips.
    """

    bench: str
    name: str
    n: int
    correct: int
    unscored: int
    accuracy: float | None
    low: float
    high: float
    causes: dict[str, int]
    pairs: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    lost: int = 0
    gained: int = 0
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All rows: per bench the base first, then the others in the order asked for."""

    base: str
    names: tuple[str, ...]
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and the report page."""
        return {"base": self.base, "names": list(self.names), "rows": [asdict(row) for row in self.rows]}


def compare_runs(log_path: Path | str, base: str | None = None, others: Sequence[str] | None = None) -> Comparison:
    """Per bench of the base: accuracy with 95 % interval and the paired difference of each other model.

    `base` defaults to the first name in the log, `others` to all other names. Raises `UsageError` for an unknown name,
    `RunLogError` when two runs did not answer the same questions under the same conditions.
    """
    with RunLog(log_path, create=False) as log:
        runs = {(run.name, run.bench): run for run in log.runs()}
        known = list(dict.fromkeys(name for name, _ in runs))
        if not known:
            raise RunLogError(
                f"{log_path} holds no runs",
                expected="a log with evaluated models",
                remedy="run `trimoe eval MODEL --log ...` first",
            )
        base = base if base is not None else known[0]
        names = [name for name in (others if others is not None else known) if name != base]
        unknown = [name for name in (base, *names) if name not in known]
        if unknown:
            raise UsageError(
                f"no run named {', '.join(unknown)} in {log_path}",
                expected="one of " + ", ".join(known),
                remedy="correct --base or the names",
            )
        rows: list[Row] = []
        for bench in [bench for name, bench in runs if name == base]:
            before = runs[base, bench]
            answers = _answers(log, before)
            rows.append(_plain(log, before))
            for name in names:
                if now := runs.get((name, bench)):
                    _require_same(before, now)
                    rows.append(_paired(_plain(log, now), answers, _answers(log, now)))
    tested = [i for i, row in enumerate(rows) if row.p is not None]
    for i, adjusted in zip(tested, holm([rows[i].p or 0.0 for i in tested]), strict=True):
        rows[i] = replace(rows[i], p_holm=adjusted)
    return Comparison(base, tuple(names), tuple(rows))


@dataclass(frozen=True)
class AgainstMean:
    """One model minus the mean of several on the same items; shares in [0, 1]. `lost` and `gained` count items on which
    it does worse or better than that mean. The interval is over items, for these very models."""

    pairs: int
    difference: float
    low: float
    high: float
    p: float
    lost: int
    gained: int


def against_mean(log_path: Path | str, name: str, others: Sequence[str], benches: Sequence[str]) -> AgainstMean:
    """`name` against the mean of `others` over the items that all of them have scored, all benches together.

    This is the test against choosing by chance, whose accuracy is that of its draws together. Raises `RunLogError` for
    runs under other conditions, `UsageError` for a name or bench that is not in the log.
    """
    units: list[int] = []
    with RunLog(log_path, create=False) as log:
        runs = {(run.name, run.bench): run for run in log.runs()}
        if missing := [(n, b) for b in benches for n in (name, *others) if (n, b) not in runs]:
            raise UsageError(f"no run of {missing[0][0]} on {missing[0][1]} in {log_path}", remedy="evaluate it first")
        for bench in benches:
            mine = runs[name, bench]
            for other in others:
                _require_same(mine, runs[other, bench])
            answers, theirs = _answers(log, mine), [_answers(log, runs[other, bench]) for other in others]
            common = sorted(set(answers).intersection(*theirs))
            units += [len(others) * answers[doc] - sum(each[doc] for each in theirs) for doc in common]
    difference, low, high = mean_difference([unit / len(others) for unit in units])
    lost, gained = sum(unit < 0 for unit in units), sum(unit > 0 for unit in units)
    return AgainstMean(len(units), difference, low, high, sign_flip_exact(units), lost, gained)


def _require_same(before: Run, now: Run) -> None:
    for what, one, two in (("bench", before.spec, now.spec), ("engine or sampler", before.sampler, now.sampler)):
        if one != two:
            keys = [key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
            raise RunLogError(
                f"{now.name} and {before.name} differ in {what} on {now.bench}",
                expected="the same for both",
                actual=", ".join(f"{key} {one.get(key)} against {two.get(key)}" for key in keys),
                remedy="evaluate both again with this version",
            )


def _answers(log: RunLog, run: Run) -> dict[str, bool]:
    return {s.sample.doc_id: s.verdict.correct for s in log.samples(run) if s.verdict.correct is not None}


def _plain(log: RunLog, run: Run) -> Row:
    samples = log.samples(run)
    scored = [s.verdict.correct for s in samples if s.verdict.correct is not None]
    correct, n = sum(scored), len(scored)
    low, high = wilson(correct, n)
    causes = dict(sorted(Counter[str](s.verdict.cause for s in samples).items()))
    return Row(run.bench, run.name, n, correct, len(samples) - n, correct / n if n else None, low, high, causes)


def _paired(row: Row, before: dict[str, bool], now: dict[str, bool]) -> Row:
    pairs = Counter((before[doc], now[doc]) for doc in before.keys() & now.keys())
    if not pairs:
        return row
    lost, gained = pairs[True, False], pairs[False, True]
    difference, low, high = paired_difference(pairs[True, True], lost, gained, pairs[False, False])
    return replace(
        row,
        pairs=sum(pairs.values()),
        difference=difference,
        difference_low=low,
        difference_high=high,
        lost=lost,
        gained=gained,
        p=mcnemar_exact(lost, gained),
    )


def overall(rows: Sequence[Row]) -> Row:
    """All benches of one model as one row: every item counts once, flips are summed. No Holm: it is one test."""
    n, correct = sum(r.n for r in rows), sum(r.correct for r in rows)
    low, high = wilson(correct, n)
    causes = sum((Counter(r.causes) for r in rows), Counter[str]())
    row = Row("all", rows[0].name, n, correct, sum(r.unscored for r in rows), correct / n if n else None, low, high,
              dict(sorted(causes.items())))  # fmt: skip
    if any(r.difference is None for r in rows):
        return row
    lost, gained, pairs = (sum(getattr(r, f) for r in rows) for f in ("lost", "gained", "pairs"))
    # Both right = right now minus gained, on the paired items; complete runs pair every item.
    both = correct - gained
    difference, d_low, d_high = paired_difference(both, lost, gained, pairs - both - lost - gained)
    return replace(row, pairs=pairs, difference=difference, difference_low=d_low, difference_high=d_high, lost=lost,
                   gained=gained, p=mcnemar_exact(lost, gained))  # fmt: skip
