"""Compares runs question by question.

Invariants: only runs of the same bench identity, engine, sampler and stack stand in one column, over the rows that both
have scored; a row that was not scored counts for nobody and is shown. p values are exact, and adjusted over the table.
Where a bench asks the same problem several times, problems are the units, not rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from trimoe.errors import UsageError
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.gather import Read, gather, names_of, of_bench
from trimoe.judge.measures import split_failures
from trimoe.judge.runs import RECORDED, bench_identity, conditions, differences, require_same, unknown_name
from trimoe.judge.statistics.bootstrap import cluster_error, paired_bootstrap
from trimoe.judge.statistics.paired import (
    clustered_difference,
    difference_error,
    holm,
    mcnemar_exact,
    mean_difference,
    paired_difference,
    sign_flip_exact,
    standard_error,
    wilson,
)
from trimoe.judge.statistics.power import detectable


@dataclass(frozen=True)
class Flips:
    """What changed between two runs, with why: (doc_id, cause) where it was missed.

    `lost_as` splits the losses into empty, loop, cut and normal: only a normal one is a loss of knowledge.
    """

    lost: tuple[tuple[str, str], ...] = ()
    gained: tuple[tuple[str, str], ...] = ()
    lost_as: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Detail:
    """What `trimoe compare` adds to a row. Shares; `se` are standard errors, `detectable` the smallest true difference
    found with 80 % probability at this n and share of flips, `units` the clusters behind the bootstrap interval."""

    se: float | None
    difference_se: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    units: int = 0
    detectable: float | None = None


@dataclass(frozen=True)
class Row:
    """One model on one bench, against the base. Shares are in [0, 1]; the base's own rows have no difference.

    `n` rows were scored, `correct` of them right; `pairs` rows are scored in both runs, `lost` and `gained` are flips.
    `column` numbers the conditions that it was measured under (0 unless shown side by side); `marks` say what was
    switched off, ignored or left out when the run was made.
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
    column: int = 0
    flips: Flips = Flips()
    detail: Detail | None = None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All rows: per bench the base first, then the others in the order asked for. `columns` are the conditions that
    rows refer to by number."""

    base: str
    names: tuple[str, ...]
    rows: tuple[Row, ...]
    columns: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and the report page."""
        return {
            "base": self.base,
            "names": list(self.names),
            "rows": [asdict(row) for row in self.rows],
            "columns": list(self.columns),
            "notes": list(self.notes),
        }


def compare_runs(
    log_path: Path | str | Sequence[Path | str],
    base: str | None = None,
    others: Sequence[str] | None = None,
    *,
    detail: bool = False,
    apart: bool = False,
) -> Comparison:
    """Per bench of the base: accuracy with 95 % interval and the paired difference of each other model.

    `base` defaults to the first name in the logs, `others` to all other names. `detail` adds standard errors, bootstrap
    intervals and detectable effects. `apart` shows runs under other conditions in columns of their own, where they are
    compared with the base only if it was run under the same. Raises `UsageError` for an unknown name, `Refused` when
    two runs did not answer the same questions under the same conditions.
    """
    paths = [log_path] if isinstance(log_path, Path | str) else list(log_path)
    found = gather(paths)
    known = names_of(found)
    base = base if base is not None else known[0]
    names = [name for name in (others if others is not None else known) if name != base]
    for name in (base, *names):
        if name not in known:
            raise unknown_name(name, known, ", ".join(map(str, paths)))
    benches = dict.fromkeys(bench for name, bench in found if apart or name == base)
    rows: list[Row] = []
    columns: list[dict[str, Any]] = []
    for bench in benches:
        before = found.get((base, bench))
        for read in of_bench(found, bench, [base, *names]):
            row = alone(read, detail)
            if before is not None and read is not before:
                if not apart:
                    require_same(before.run, read.run)
                if not differences(before.run, read.run):
                    row = against_base(row, before, read, detail)
            rows.append(replace(row, column=_column(columns, read) if apart else 0))
    if apart:
        rows.sort(key=lambda row: (list(benches).index(row.bench), row.column))
    tested = [i for i, row in enumerate(rows) if row.p is not None]
    for i, adjusted in zip(tested, holm([rows[i].p or 0.0 for i in tested]), strict=True):
        rows[i] = replace(rows[i], p_holm=adjusted)
    return Comparison(base, tuple(names), tuple(rows), tuple(columns), _notes(found, [base, *names]))


def _column(columns: list[dict[str, Any]], read: Read) -> int:
    """The number of the run's conditions, from 1."""
    settings = {"bench": bench_identity(read.run), "conditions": conditions(read.run)}
    if settings not in columns:
        columns.append(settings)
    return columns.index(settings) + 1


def _notes(found: dict[tuple[str, str], Read], names: Sequence[str]) -> tuple[str, ...]:
    recorded = list(dict.fromkeys(n for n, b in found if n in names and RECORDED in found[n, b].run.spec))
    notes = [f"recorded elsewhere, engine and stack not known: {', '.join(recorded)}"] if recorded else []
    for (name, bench), read in found.items():
        if name not in names:
            continue
        if read.marks:
            notes.append(f"! {name} on {bench}: {', '.join(read.marks)}")
        rows = read.run.spec.get("rows")
        if isinstance(rows, int) and len(read.samples) < rows:
            notes.append(f"! {name} on {bench}: {len(read.samples)} of {rows} items were answered")
    return tuple(notes)


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

    This is the test against choosing by chance, whose accuracy is that of its draws together. Raises `Refused` for
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
                require_same(mine, runs[other, bench])
            answers, theirs = (
                Read(mine, tuple(log.samples(mine)), None).answers,
                [Read(r, tuple(log.samples(r)), None).answers for r in (runs[other, bench] for other in others)],
            )
            common = sorted(set(answers).intersection(*theirs))
            units += [len(others) * answers[doc] - sum(each[doc] for each in theirs) for doc in common]
    difference, low, high = mean_difference([unit / len(others) for unit in units])
    lost, gained = sum(unit < 0 for unit in units), sum(unit > 0 for unit in units)
    return AgainstMean(len(units), difference, low, high, sign_flip_exact(units), lost, gained)


def alone(read: Read, detail: bool) -> Row:
    """The row of one run by itself. Looks at ids and verdicts only, so samples may come without their texts."""
    scored = list(read.answers.values())
    correct, n = sum(scored), len(scored)
    share = read.score if read.clustered else correct / n if n else None
    error = standard_error(correct, n)
    low, high = wilson(correct, n)
    if read.clustered and n:
        error, low, high = _over_clusters(read, share, n, error)
    causes = dict(sorted(Counter[str](s.verdict.cause for s in read.samples).items()))
    more = Detail(error) if detail else None
    return Row(
        read.run.bench,
        read.run.name,
        n,
        correct,
        len(read.samples) - n,
        share,
        low,
        high,
        causes,
        detail=more,
        marks=read.marks,
    )


def _over_clusters(read: Read, share: float | None, n: int, plain: float | None) -> tuple[float | None, float, float]:
    """Standard error and interval of a score whose items repeat: those of as many independent rows as the clusters are
    worth. Where that cannot be measured (one cluster, or all rows alike) every cluster counts once."""
    if share is None:
        return None, 0.0, 1.0
    clusters = _clusters(read)
    error = cluster_error(clusters)
    worth = float(len(clusters))
    if plain and isfinite(error):
        worth = n / max(1.0, (error / plain) ** 2)
        error = max(error, plain)
    low, high = wilson(share * worth, worth)
    return (error if isfinite(error) else None), low, high


def _clusters(read: Read) -> list[list[int]]:
    sums: dict[str, list[int]] = {}
    for doc, right in read.answers.items():
        both = sums.setdefault(read.cluster(doc), [0, 0])
        both[0] += right
        both[1] += 1
    return list(sums.values())


def against_base(row: Row, before: Read, now: Read, detail: bool) -> Row:
    """`row` (of `now`) with the paired difference to `before`; unchanged when they share no scored item."""
    was, is_ = before.answers, now.answers
    common = [doc for doc in was if doc in is_]
    pairs = Counter((was[doc], is_[doc]) for doc in common)
    if not pairs:
        return row
    lost, gained, n = pairs[True, False], pairs[False, True], len(common)
    difference, low, high = paired_difference(n, lost, gained)
    p = mcnemar_exact(lost, gained)
    if detail or now.clustered:
        units = [(now.cluster(doc), is_[doc] - was[doc]) for doc in common]
        drawn = paired_bootstrap(units)
        over_clusters = drawn.se if drawn.method == "bootstrap" else None  # else they all agree, or there is one
        error = over_clusters if now.clustered else difference_error(n, lost, gained)
        if now.clustered:
            sums = Counter[str]()
            for cluster, change in units:
                sums[cluster] += change
            _, low, high = clustered_difference(n, lost, gained, over_clusters, drawn.units)
            p = sign_flip_exact(list(sums.values()))
        if detail and row.detail is not None:
            seen = None if now.clustered else detectable(n, (lost + gained) / n)
            row = replace(row, detail=Detail(row.detail.se, error, drawn.low, drawn.high, drawn.units, seen))
    return replace(
        row,
        pairs=n,
        difference=difference,
        difference_low=low,
        difference_high=high,
        lost=lost,
        gained=gained,
        p=p,
        flips=_flips(before, now),
    )


def _flips(before: Read, now: Read) -> Flips:
    """Losses with the cause of the new miss, gains with the cause of the old one."""
    was, is_ = before.answers, now.answers
    lost = [s for s in now.samples if is_.get(s.sample.doc_id) is False and was.get(s.sample.doc_id)]
    gained = [s for s in before.samples if was.get(s.sample.doc_id) is False and is_.get(s.sample.doc_id)]
    return Flips(
        tuple((s.sample.doc_id, s.verdict.cause) for s in lost),
        tuple((s.sample.doc_id, s.verdict.cause) for s in gained),
        split_failures(lost),
    )


def overall(rows: Sequence[Row]) -> Row:
    """All benches of one model as one row: every item counts once, flips are summed. No Holm: it is one test."""
    n, correct = sum(r.n for r in rows), sum(r.correct for r in rows)
    low, high = wilson(correct, n)
    causes = sum((Counter(r.causes) for r in rows), Counter[str]())
    marks = tuple(dict.fromkeys(mark for r in rows for mark in r.marks))
    row = Row(
        "all",
        rows[0].name,
        n,
        correct,
        sum(r.unscored for r in rows),
        correct / n if n else None,
        low,
        high,
        dict(sorted(causes.items())),
        marks=marks,
    )
    if any(r.difference is None for r in rows):
        return row
    lost, gained, pairs = (sum(getattr(r, f) for r in rows) for f in ("lost", "gained", "pairs"))
    difference, d_low, d_high = paired_difference(pairs, lost, gained)
    return replace(
        row,
        pairs=pairs,
        difference=difference,
        difference_low=d_low,
        difference_high=d_high,
        lost=lost,
        gained=gained,
        p=mcnemar_exact(lost, gained),
    )
