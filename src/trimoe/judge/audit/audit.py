"""Whether a run's number may be published: checks with evidence, and one verdict per run.

Verdicts: `publishable`; `notes`, publishable with what the notes say beside it; `refused`. Every check leaves a row,
also one that passed or could not be made, so that silence is never taken for a pass. Thresholds are in `audit.toml`.
Invariants: reads run logs and nothing else changes; the worst row decides. Not guaranteed: that a publishable number is
right, only that none of these artifacts made it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import benches, find
from trimoe.errors import MissingPrerequisite, UsageError
from trimoe.evaluate.log.marks import shown_marks, was_made_here
from trimoe.evaluate.log.run_log import Run, RunLog, Scored
from trimoe.evaluate.run import summarize
from trimoe.judge.audit.check import Check
from trimoe.judge.audit.pairs import pair_checks
from trimoe.judge.audit.rules import Rules, rules
from trimoe.judge.audit.run_checks import mark_checks, run_checks
from trimoe.judge.compare import alone
from trimoe.judge.gather import Read
from trimoe.judge.measures import Measures, measure
from trimoe.judge.runs import require_same, unknown_name

Verdict = Literal["publishable", "notes", "refused"]


@dataclass(frozen=True)
class RunAudit:
    """One audited run. `flags` are the checks that fired, CLEAN when none did; `score` is a share."""

    name: str
    bench: str
    run: str
    verdict: Verdict
    flags: tuple[str, ...]
    n: int
    expected: int | None
    score: float | None
    se: float | None
    low: float
    high: float
    measures: Measures
    checks: tuple[Check, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: counts instead of ids where a check's row has the ids."""
        m = self.measures
        body = {k: v for k, v in asdict(self).items() if k != "measures"}
        return body | {
            "empty": len(m.empty),
            "fenced": m.fenced,
            "chars": dict(zip(("p10", "p50", "p90"), m.chars, strict=True)),
            "verbatim": None if m.verbatim is None else len(m.verbatim),
            "split": dict(m.split),
            "ceilings": None if m.ceilings is None else asdict(m.ceilings),
            "failures": [{"doc_id": i, "cause": c, "detail": d} for i, c, d in m.failures],
        }


@dataclass(frozen=True)
class Wanted:
    """What is audited (all runs, those called `name`, only those on `bench`) and against what. `recorded` is
    name -> bench -> score (a share) of unpruned references; `leaks` a calibration set's leak check as the statistics
    keep it; `data` a folder of local data sets."""

    name: str | None = None
    pair: tuple[str, str] | None = None
    recorded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    leaks: Mapping[str, Any] | None = None
    data: Path | None = None
    rules: Rules = field(default_factory=rules)
    bench: str | None = None


def audit(log_path: Path | str, wanted: Wanted | None = None, *, readonly: bool = False) -> list[RunAudit]:
    """Audit the runs of a log, in its order. Raises `UsageError` for an unknown name, `Refused` for a pair of runs
    under different conditions. `readonly` is for a log of the newest schema that may not be written to."""
    wanted = wanted or Wanted()
    with RunLog(log_path, create=False, readonly=readonly) as log:
        runs = log.runs()
        names = [*((wanted.name,) if wanted.name else ()), *(wanted.pair or ())]
        for name in names:
            if name not in {run.name for run in runs}:
                raise unknown_name(name, [run.name for run in runs], str(log_path))
        chosen = [run for run in runs if not names or run.name in names]
        chosen = [run for run in chosen if wanted.bench in (None, run.bench)]
        samples = {(run.name, run.bench): log.samples(run) for run in chosen}
        made = [_one(log, run, samples[run.name, run.bench], wanted) for run in chosen]
        siblings = {(run.name, run.bench): (run, log.samples(run)) for run in runs if _plus_needs(run, made)}
    made = [_with(one, list(_plus(one, siblings, wanted.rules))) for one in made]
    made = _with_drift(made, {(run.name, run.bench): run for run in chosen}, wanted)
    return _with_pair(made, chosen, samples, wanted) if wanted.pair else made


def _one(log: RunLog, run: Run, samples: list[Scored], wanted: Wanted) -> RunAudit:
    limits = wanted.rules.of(run.bench)
    code = run.bench.partition(":")[0] in wanted.rules.texts.solutions
    docs = rows_of(run.bench, wanted.data) if code else None
    m = measure(run, samples, limits, wanted.rules.texts, docs)
    summary = summarize(log, run)
    checks = tuple(run_checks(run, samples, m, limits, wanted.rules, wanted.leaks, code))
    if run.bench.partition(":")[0] not in benches():
        checks = tuple(map(_of_unknown, checks))
    checks += tuple(mark_checks(shown_marks(log, run), was_made_here(log, run), wanted.rules))
    row = alone(Read(run, tuple(samples), summary.score), True)
    rows = run.spec.get("rows")
    expected = rows if isinstance(rows, int) else None
    one = RunAudit(
        run.name,
        run.bench,
        run.identity,
        "publishable",
        (),
        m.n,
        expected,
        summary.score,
        row.detail.se if row.detail else None,
        row.low,
        row.high,
        m,
        (),
    )
    return _with(one, checks)


def _of_unknown(check: Check) -> Check:
    """How short a right reply may be is known of shipped benches only."""
    if check.level != "refused" or check.flag not in ("EMPTY_FAIL", "TOO_SHORT"):
        return check
    text = f"{check.text}; the bench is not shipped: how short its replies may be is not known"
    return replace(check, level="notes", text=text)


def _with(one: RunAudit, more: Sequence[Check]) -> RunAudit:
    """The audit with further checks, its verdict drawn anew."""
    checks = (*one.checks, *more)
    levels = {check.level for check in checks}
    verdict: Verdict = "refused" if "refused" in levels else "notes" if "notes" in levels else "publishable"
    fired = tuple(dict.fromkeys(check.flag for check in checks if check.level in ("notes", "refused")))
    return replace(one, checks=checks, verdict=verdict, flags=fired or ("CLEAN",))


def rows_of(bench: str, data: Path | None) -> dict[str, Doc] | None:
    """The bench's rows from local files; None where they are not at hand."""
    try:
        known = find([bench])[0]
    except UsageError:
        return None
    if known.protocol is not None and data is None:
        return None
    try:
        return {doc.doc_id: doc for doc in known.docs(data)}
    except MissingPrerequisite:
        return None


def _plus_needs(run: Run, made: Sequence[RunAudit]) -> bool:
    """Whether the next check reads it: a HumanEval run of a model whose HumanEval run is audited."""
    base = [one.name for one in made if one.bench.partition(":")[0] == "humaneval"]
    return run.name in base and run.bench.partition(":")[0] in ("humaneval", "humaneval-plus")


def _plus(one: RunAudit, siblings: Mapping[tuple[str, str], tuple[Run, list[Scored]]], r: Rules) -> Iterator[Check]:
    """HumanEval to HumanEval+ of the same model: the same functions, many more tests."""
    base, mark, variant = one.bench.partition(":")
    if base != "humaneval":
        return
    other = siblings.get((one.name, f"humaneval-plus{mark}{variant}"))
    if other is None:
        yield Check("NO_PLUS_DROP", "not checked", f"{one.name} has no run of humaneval-plus in this log")
        return
    before = {s.sample.doc_id: s.verdict.correct for s in siblings[one.name, one.bench][1]}
    after = {s.sample.doc_id: s.verdict.correct for s in other[1]}
    both = [i for i in before if before[i] is not None and after.get(i) is not None]
    if not both:
        yield Check("NO_PLUS_DROP", "not checked", "no item is scored in both benches")
        return
    drop = (sum(after[i] is True for i in both) - sum(before[i] is True for i in both)) / len(both)
    lost = tuple(i for i in both if before[i] and not after[i])
    # with the usual loss, the chance that n items show none at all
    unlikely = (1 - r.limits.plus_drop) ** len(both) < 0.05
    text = f"HumanEval to HumanEval+: {100 * drop:+.2f} pp on {len(both)} common items"
    if drop >= 0 and unlikely:
        yield Check(
            "NO_PLUS_DROP",
            r.levels["NO_PLUS_DROP"],
            f"{text}; about {-100 * r.limits.plus_drop:.0f} is usual",
            100 * drop,
            -100 * r.limits.plus_drop,
            lost,
        )
    else:
        yield Check("NO_PLUS_DROP", "ok", text, 100 * drop, -100 * r.limits.plus_drop, lost)


def _with_drift(made: list[RunAudit], runs: Mapping[tuple[str, str], Run], wanted: Wanted) -> list[RunAudit]:
    """A reference that moved takes every number of its bench under the same conditions with it."""
    out = {(one.name, one.bench): one for one in made}
    for key, one in list(out.items()):
        was = wanted.recorded.get(one.name, {}).get(one.bench)
        if was is None:
            continue
        limit = wanted.rules.limits.drift_pp
        if one.score is None:
            out[key] = _with(out[key], [Check("DRIFT", "not checked", "nothing is scored")])
            continue
        drift = 100 * (one.score - was)
        text = f"{one.name} scores {100 * one.score:.2f} %, recorded {100 * was:.2f} % ({drift:+.2f} pp)"
        moved = abs(drift) > limit
        level = wanted.rules.levels["DRIFT"] if moved else "ok"
        same = [k for k in out if k[1] == one.bench and runs[k].sampler == runs[key].sampler] if moved else [key]
        for k in same:
            out[k] = _with(out[k], [Check("DRIFT", level, text, drift, limit)])
    return list(out.values())


def _with_pair(
    made: list[RunAudit], runs: list[Run], samples: Mapping[tuple[str, str], list[Scored]], wanted: Wanted
) -> list[RunAudit]:
    assert wanted.pair is not None
    base, variant = wanted.pair
    of = {(run.name, run.bench): run for run in runs}
    shared = [one.bench for one in made if one.name == base and (variant, one.bench) in of]
    if not shared:
        raise UsageError(f"{base} and {variant} have no bench in common", remedy="evaluate both on the same bench")
    out = []
    for one in made:
        if one.name == variant and one.bench in shared:
            require_same(of[base, one.bench], of[variant, one.bench])
            limits = wanted.rules.of(one.bench)
            before, after = samples[base, one.bench], samples[variant, one.bench]
            one = _with(one, list(pair_checks(before, after, limits, wanted.rules)))
        out.append(one)
    return out
