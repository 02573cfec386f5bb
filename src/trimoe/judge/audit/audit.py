"""Decides whether each run's score is fit to publish, from checks with evidence.

Verdicts: `publishable`; `notes`, publishable together with its notes; `refused`. Every check leaves a row, also when it
passed or could not be made, so a missing check never counts as a pass. Thresholds are in `audit.toml`.
Invariants: reads run logs and changes nothing; the worst row decides. Not guaranteed: that a publishable number is
right, only that none of these artifacts produced it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import benches, find
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.errors import BadInput, MissingPrerequisite, UsageError
from trimoe.evaluate.log.marks import shown_marks, was_made_here
from trimoe.evaluate.log.records import Run, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import summarize
from trimoe.io.jsonfile import read_json
from trimoe.judge.audit.check import Check
from trimoe.judge.audit.pairs import pair_checks
from trimoe.judge.audit.result import Audit, RunAudit, Verdict
from trimoe.judge.audit.rules import Rules, rules
from trimoe.judge.audit.run_checks import mark_checks, run_checks
from trimoe.judge.gather import Read
from trimoe.judge.measures import Measures, measure
from trimoe.judge.rows import own_row
from trimoe.judge.runs import require_same, unknown_name


@dataclass(frozen=True)
class AuditOptions:
    """Which runs are audited, and against what.

    `name` and `bench` restrict the runs; `pair` is (base, variant). `recorded` is name -> bench -> score (a share) of
    unpruned models. `leaks` is the leak check that expert statistics carry. `data` is a folder of local data sets.
    """

    name: str | None = None
    pair: tuple[str, str] | None = None
    recorded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    leaks: Mapping[str, Any] | None = None
    data: Path | None = None
    rules: Rules = field(default_factory=rules)
    bench: str | None = None


def audit(
    log: Path | str,
    *,
    name: str | None = None,
    bench: str | None = None,
    pair: tuple[str, str] | None = None,
    stats: Path | str | None = None,
    recorded: Path | str | Mapping[str, Mapping[str, float]] | None = None,
    data: Path | str | None = None,
    readonly: bool = False,
) -> Audit:
    """Audit the runs of a log, in its order; by default all of them.

    `pair` also compares a variant with its base. `stats` are expert statistics with a leak check. `recorded` are scores
    of unpruned models in percent ({name: {bench: percent}}, or a JSON file): a drift from them refuses. `data` is a
    folder of local data sets, to find replies that repeat a data set's own solution. `readonly` opens a log of the
    newest schema without writing to it. Raises `UsageError` for an unknown name, `Refused` for a pair of runs under
    different conditions, `BadInput` for statistics without a leak check or a wrong file of recorded scores.
    """
    options = AuditOptions(name, pair, _shares(recorded), _leak_check(stats), Path(data) if data else None, bench=bench)
    return audit_runs(log, options, readonly=readonly)


def audit_runs(log_path: Path | str, options: AuditOptions, *, readonly: bool = False) -> Audit:
    """`audit` with loaded inputs."""
    with RunLog(log_path, create=False, readonly=readonly) as log:
        runs = log.runs()
        names = [*((options.name,) if options.name else ()), *(options.pair or ())]
        for name in names:
            if name not in {run.name for run in runs}:
                raise unknown_name(name, [run.name for run in runs], str(log_path))
        chosen = [run for run in runs if not names or run.name in names]
        chosen = [run for run in chosen if options.bench in (None, run.bench)]
        samples = {(run.name, run.bench): log.samples(run) for run in chosen}
        made = [_one(log, run, samples[run.name, run.bench], options) for run in chosen]
        siblings = {(run.name, run.bench): (run, log.samples(run)) for run in runs if _plus_needs(run, made)}
    made = [_with(one, list(_plus(one, siblings, options.rules))) for one in made]
    made = _with_drift(made, {(run.name, run.bench): run for run in chosen}, options)
    made = _with_pair(made, chosen, samples, options) if options.pair else made
    return Audit(str(log_path), tuple(made))


def _shares(recorded: Path | str | Mapping[str, Mapping[str, float]] | None) -> dict[str, dict[str, float]]:
    """Recorded scores as shares."""
    if recorded is None:
        return {}
    where = "recorded" if isinstance(recorded, Mapping) else str(recorded)
    body = recorded if isinstance(recorded, Mapping) else read_json(Path(recorded), "recorded scores")
    try:
        return {str(n): {str(b): _share(s) for b, s in row.items()} for n, row in body.items()}
    except (AttributeError, TypeError, ValueError) as exc:
        raise BadInput(
            f"{where} does not hold recorded scores",
            expected='{"name": {"bench": score in percent}}',
            actual=str(exc),
            remedy="write the scores in this form",
        ) from exc


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{value!r} is not a score in percent")
    return value / 100


def _leak_check(stats: Path | str | None) -> Mapping[str, Any] | None:
    if stats is None:
        return None
    found = ExpertStats.load(Path(stats)).metadata.get("leak_check")
    if not isinstance(found, dict):
        raise BadInput(
            f"{stats} has no leak check",
            expected="statistics made with `trimoe calibrate --leak-check`",
            actual="statistics without one",
            remedy="calibrate with --leak-check BENCH, or leave out the statistics",
        )
    return found


def _one(log: RunLog, run: Run, samples: list[Scored], options: AuditOptions) -> RunAudit:
    limits = options.rules.of(run.bench)
    code = run.bench.partition(":")[0] in options.rules.texts.solutions
    docs = rows_of(run.bench, options.data) if code else None
    m = measure(run, samples, limits, options.rules.texts, docs)
    summary = summarize(log, run)
    checks = tuple(run_checks(run, samples, m, limits, options.rules, options.leaks, code))
    if run.bench.partition(":")[0] not in benches():
        checks = tuple(map(_softened, checks))
    checks += tuple(_stated(log, run, m, options.rules))
    marks = [mark for mark in shown_marks(log, run) if mark.flag != "STATED"]  # a check of its own, with the rows
    checks += tuple(mark_checks(marks, was_made_here(log, run), options.rules))
    row = own_row(Read(run, tuple(samples), summary.score), True)
    rows = run.spec.get("rows")
    one = RunAudit(
        name=run.name,
        bench=run.bench,
        run=run.identity,
        verdict="publishable",
        flags=(),
        n=m.n,
        expected=rows if isinstance(rows, int) else None,
        score=summary.score,
        se=row.detail.se if row.detail else None,
        low=row.score.low,
        high=row.score.high,
        measures=m,
        checks=(),
    )
    return _with(one, checks)


def _stated(log: RunLog, run: Run, m: Measures, r: Rules) -> Iterator[Check]:
    """Rows whose final statement disagrees with the protocol's extraction, for benches with a second opinion."""
    try:
        bench = find([run.bench])[0]
    except UsageError:
        return
    if bench.opinion is None or not m.n:
        return
    if len(log.scored_by(run, bench.scorer)) < m.scored:
        text = "some verdicts are from a version without a second opinion: trimoe rescore"
        yield Check("STATED", "not checked", text)
        return
    text = f"{len(m.stated)} of {m.n} replies state another final answer than the one that was extracted or credited"
    yield Check("STATED", r.levels["STATED"] if m.stated else "ok", text, len(m.stated) / m.n, 0.0, m.stated)


def _softened(check: Check) -> Check:
    """A note instead of a refusal: how short a right reply may be is known only for shipped benches."""
    if check.level != "refused" or check.flag not in ("EMPTY_FAIL", "TOO_SHORT"):
        return check
    text = f"{check.text}; the bench is not a shipped one, so its shortest right reply is not known"
    return replace(check, level="notes", text=text)


def _with(one: RunAudit, more: Sequence[Check]) -> RunAudit:
    """The audit with further checks and the verdict that follows from all of them."""
    checks = (*one.checks, *more)
    levels = {check.level for check in checks}
    verdict: Verdict = "refused" if "refused" in levels else "notes" if "notes" in levels else "publishable"
    fired = tuple(dict.fromkeys(check.flag for check in checks if check.level in ("notes", "refused")))
    return replace(one, checks=checks, verdict=verdict, flags=fired or ("CLEAN",))


def rows_of(bench: str, data: Path | None) -> dict[str, Doc] | None:
    """The bench's items from local files; None where they are not available."""
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
    """Whether `_plus` reads it: a HumanEval or HumanEval+ run of a model whose HumanEval run is audited."""
    base = [one.name for one in made if one.bench.partition(":")[0] == "humaneval"]
    return run.name in base and run.bench.partition(":")[0] in ("humaneval", "humaneval-plus")


def _plus(one: RunAudit, siblings: Mapping[tuple[str, str], tuple[Run, list[Scored]]], r: Rules) -> Iterator[Check]:
    """HumanEval to HumanEval+ of the same model: the same functions with many more tests, so the score must drop."""
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
    usual = -100 * r.limits.plus_drop
    # the chance that n items show no loss at all, given the usual rate of loss
    unlikely = (1 - r.limits.plus_drop) ** len(both) < 0.05
    text = f"HumanEval to HumanEval+: {100 * drop:+.2f} pp on {len(both)} common items"
    if drop >= 0 and unlikely:
        text += f"; about {usual:.0f} is usual"
        yield Check("NO_PLUS_DROP", r.levels["NO_PLUS_DROP"], text, 100 * drop, usual, lost)
    else:
        yield Check("NO_PLUS_DROP", "ok", text, 100 * drop, usual, lost)


def _with_drift(made: list[RunAudit], runs: Mapping[tuple[str, str], Run], options: AuditOptions) -> list[RunAudit]:
    """A reference that drifted puts every number of its bench under the same conditions in doubt."""
    out = {(one.name, one.bench): one for one in made}
    for key, one in list(out.items()):
        was = options.recorded.get(one.name, {}).get(one.bench)
        if was is None:
            continue
        limit = options.rules.limits.drift_pp
        if one.score is None:
            out[key] = _with(out[key], [Check("DRIFT", "not checked", "nothing is scored")])
            continue
        drift = 100 * (one.score - was)
        text = f"{one.name} scores {100 * one.score:.2f} %, recorded {100 * was:.2f} % ({drift:+.2f} pp)"
        moved = abs(drift) > limit
        level = options.rules.levels["DRIFT"] if moved else "ok"
        same = [k for k in out if k[1] == one.bench and runs[k].sampler == runs[key].sampler] if moved else [key]
        for k in same:
            out[k] = _with(out[k], [Check("DRIFT", level, text, drift, limit)])
    return list(out.values())


def _with_pair(
    made: list[RunAudit], runs: list[Run], samples: Mapping[tuple[str, str], list[Scored]], options: AuditOptions
) -> list[RunAudit]:
    assert options.pair is not None
    base, variant = options.pair
    of = {(run.name, run.bench): run for run in runs}
    shared = [one.bench for one in made if one.name == base and (variant, one.bench) in of]
    if not shared:
        raise UsageError(f"{base} and {variant} have no bench in common", remedy="evaluate both on the same bench")
    out = []
    for one in made:
        if one.name == variant and one.bench in shared:
            require_same(of[base, one.bench], of[variant, one.bench])
            limits = options.rules.of(one.bench)
            before, after = samples[base, one.bench], samples[variant, one.bench]
            one = _with(one, list(pair_checks(before, after, limits, options.rules)))
        out.append(one)
    return out
