"""Compares evaluated models with a base, item by item.

Invariants: only runs of the same bench identity, engine, sampler and stack are compared; p values are exact, and
adjusted over all tests of the table. How one row is computed is in `rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.errors import UsageError
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.comparison import Comparison, Row
from trimoe.judge.gather import Read, gather, names_of, of_bench
from trimoe.judge.rows import against_base, own_row
from trimoe.judge.runs import RECORDED, bench_identity, conditions, differences, require_same, unknown_name
from trimoe.judge.statistics.paired import holm, mean_difference, sign_flip_exact


def compare(
    logs: Path | str | Sequence[Path | str],
    *,
    base: str | None = None,
    against: Sequence[str] | None = None,
    side_by_side: bool = False,
    detail: bool = True,
) -> Comparison:
    """Score every model on every bench of the base, with its paired difference to the base.

    `logs` is one run log or several. `base` defaults to the first name in the logs, `against` to all other names.
    `side_by_side` shows runs under other conditions in columns of their own, where they are compared with the base only
    if it was run under the same ones. `detail=False` leaves out standard errors, bootstrap intervals and detectable
    effects, which take most of the time. Raises `UsageError` for an unknown name, `RunLogError` for a log without runs,
    `Refused` when two runs did not answer the same items under the same conditions.

    >>> _ = trimoe.evaluate(small, bench="tiny-code", log="runs.db", name="small", limit=4)
    >>> trimoe.compare("runs.db", base="base")
    Comparison(base='base', 1 models against it, 1 benches)
    """
    paths = [logs] if isinstance(logs, Path | str) else list(logs)
    found = gather(paths)
    known = names_of(found)
    base = base if base is not None else known[0]
    names = [name for name in (against if against is not None else known) if name != base]
    for name in (base, *names):
        if name not in known:
            raise unknown_name(name, known, ", ".join(map(str, paths)))
    benches = list(dict.fromkeys(bench for name, bench in found if side_by_side or name == base))
    rows: list[Row] = []
    columns: list[dict[str, Any]] = []
    for bench in benches:
        before = found.get((base, bench))
        for read in of_bench(found, bench, [base, *names]):
            row = own_row(read, detail)
            if before is not None and read is not before:
                if not side_by_side:
                    require_same(before.run, read.run)
                if not differences(before.run, read.run):
                    row = against_base(row, before, read, detail)
            rows.append(replace(row, column=_column(columns, read) if side_by_side else 0))
    if side_by_side:
        rows.sort(key=lambda row: (benches.index(row.bench), row.column))
    return Comparison(base, tuple(names), _adjusted(rows), tuple(columns), _notes(found, [base, *names]))


def _adjusted(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with p values adjusted over the table."""
    adjusted = iter(holm([row.change.p for row in rows if row.change is not None]))
    return tuple(
        row if row.change is None else replace(row, change=replace(row.change, p_holm=next(adjusted))) for row in rows
    )


def _column(columns: list[dict[str, Any]], read: Read) -> int:
    """The number of the run's conditions, from 1."""
    settings = {"bench": bench_identity(read.run), "conditions": conditions(read.run)}
    if settings not in columns:
        columns.append(settings)
    return columns.index(settings) + 1


def _notes(found: dict[tuple[str, str], Read], names: Sequence[str]) -> tuple[str, ...]:
    recorded = list(dict.fromkeys(n for n, b in found if n in names and RECORDED in found[n, b].run.spec))
    notes = [f"imported samples, engine and stack unknown: {', '.join(recorded)}"] if recorded else []
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
    """One model minus the mean of several on the same items; shares in [0, 1].

    `lost` and `gained` count items on which it does worse or better than that mean. The interval is over items, for
    these models only.
    """

    pairs: int
    difference: float
    low: float
    high: float
    p: float
    lost: int
    gained: int


def against_mean(log_path: Path | str, name: str, others: Sequence[str], benches: Sequence[str]) -> AgainstMean:
    """`name` against the mean of `others`, over the items of all `benches` that every one of them has scored.

    Tests against random choice when `others` are random draws. Raises `Refused` for runs under other conditions,
    `UsageError` for a name or bench that is not in the log.
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
            answers = Read(mine, tuple(log.samples(mine)), None).answers
            theirs = [Read(r, tuple(log.samples(r)), None).answers for r in (runs[other, bench] for other in others)]
            common = sorted(set(answers).intersection(*theirs))
            units += [len(others) * answers[doc] - sum(each[doc] for each in theirs) for doc in common]
    difference, low, high = mean_difference([unit / len(others) for unit in units])
    lost, gained = sum(unit < 0 for unit in units), sum(unit > 0 for unit in units)
    return AgainstMean(len(units), difference, low, high, sign_flip_exact(units), lost, gained)
