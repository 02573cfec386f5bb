"""Paired comparison of runs on the same items: accuracy, intervals, flips, exact p.

Invariants: only runs with the same bench identity and settings are paired; a run with unscored or missing samples is
refused, because its accuracy is not a fact about the model.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, Refused
from trimoe.evaluate.log import Row, Run, RunLog
from trimoe.judge.stats import holm, mcnemar_exact, paired_difference, wilson

ALL = "all"


@dataclass(frozen=True)
class Cell:
    """One model on one bench (or on all): accuracy with Wilson interval, and the paired difference against base."""

    name: str
    bench: str
    n: int
    correct: int
    low: float
    high: float
    difference: float = 0.0
    difference_low: float = 0.0
    difference_high: float = 0.0
    gained: int = 0
    lost: int = 0
    p: float = 1.0
    p_holm: float = 1.0

    @property
    def accuracy(self) -> float:
        """Share of correct samples."""
        return self.correct / self.n


@dataclass(frozen=True)
class Comparison:
    """All cells; `benches` and `names` give the order of rows and columns. Holm's correction is over benches."""

    base: str
    names: list[str]
    benches: list[str]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [asdict(c) | {"accuracy": c.accuracy} for c in self.cells.values()]
        return {"base": self.base, "names": self.names, "benches": self.benches, "cells": rows}


def compare_runs(log_path: Path, base: str | None = None, names: list[str] | None = None) -> Comparison:
    """Compare runs of a log by name; `base` defaults to the first run's name."""
    if not log_path.exists():
        raise BadInput(f"run log {log_path} not found", remedy="run `trimoe eval ... --log` first")
    log = RunLog(log_path)
    try:
        runs = log.runs()
        if not runs:
            raise BadInput(f"run log {log_path} has no runs", remedy="run `trimoe eval ... --log` first")
        known = list(dict.fromkeys(r.name for r in runs))
        base = base or known[0]
        for name in [base, *(names or [])]:
            if name not in known:
                raise BadInput(f"no run is named {name}", expected=", ".join(known), actual=name)
        chosen = [base, *[n for n in (names or known) if n != base]]
        benches = [b for b in dict.fromkeys(r.bench for r in runs) if _of(runs, base, b)]
        tables = {(n, b): _rows(log, runs, n, b, base) for n in chosen for b in benches}
    finally:
        log.close()
    cells: dict[tuple[str, str], Cell] = {}
    for name in chosen:
        own = [_cell(name, b, tables[base, b], tables[name, b]) for b in benches]
        merged = [{(b, d): ok for b in benches for d, ok in tables[n, b].items()} for n in (base, name)]
        adjusted = holm([c.p for c in own])
        for cell, p in zip(own, adjusted, strict=True):
            cells[name, cell.bench] = Cell(**{**asdict(cell), "p_holm": p})
        total = _cell(name, ALL, *merged)
        cells[name, ALL] = Cell(**{**asdict(total), "p_holm": total.p})
    return Comparison(base, chosen, benches, cells)


def _of(runs: list[Run], name: str, bench: str) -> Run | None:
    return next((r for r in reversed(runs) if (r.name, r.bench) == (name, bench)), None)


def _rows(log: RunLog, runs: list[Run], name: str, bench: str, base: str) -> dict[str, bool]:
    run, reference = _of(runs, name, bench), _of(runs, base, bench)
    if run is None or reference is None:
        raise BadInput(f"{name} has no run of {bench}", expected=f"the benches of {base}", remedy="evaluate it first")
    if run.bench_identity != reference.bench_identity:
        raise Refused(
            f"{name} and {base} ran different versions or rows of {bench}",
            expected="the same bench identity",
            remedy="evaluate both with the same --limit and version",
        )
    rows: list[Row] = log.samples(run)
    verdicts = {r.doc_id: r.correct for r in rows if r.correct is not None}
    if len(verdicts) != run.expected:
        raise Refused(
            f"the run of {bench} on {name} is not complete",
            expected=f"{run.expected} scored samples",
            actual=f"{len(verdicts)}",
            remedy="run the same `trimoe eval` again; it continues",
        )
    return verdicts


def _cell(name: str, bench: str, before: dict[Any, bool], after: dict[Any, bool]) -> Cell:
    both = sum(before[d] and after[d] for d in before)
    gained = sum(not before[d] and after[d] for d in before)
    lost = sum(before[d] and not after[d] for d in before)
    correct = both + gained
    d, low, high = paired_difference(both, gained, lost, len(before) - both - gained - lost)
    return Cell(
        name,
        bench,
        len(after),
        correct,
        *wilson(correct, len(after)),
        d,
        low,
        high,
        gained,
        lost,
        mcnemar_exact(gained, lost),
    )
