"""The evaluation loop: asks for missing replies, stores, judges, watches the guards and concludes each run.

Invariants: stored replies are never generated again. Each reply is durable before it is judged or counted. However a
run ends, everything that had arrived is stored. Rows that could not be scored are never wrong answers; they are judged
again by the next call.
Not guaranteed: pending requests of a stopped run are given up, and their replies are requested again.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from trimoe.bench.bench import Bench
from trimoe.errors import Refused, UsageError
from trimoe.evaluate.answerer import Answerer, ServerChanged
from trimoe.evaluate.guards import RunGuard, require_known, require_sound
from trimoe.evaluate.intake import Intake, Job
from trimoe.evaluate.log.lock import locked
from trimoe.evaluate.log.marks import CONCLUDED, PAUSED, is_paused
from trimoe.evaluate.log.records import Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary, conclude
from trimoe.evaluate.scoring import judge, score_stored
from trimoe.evaluate.tally import Show, Tally, as_show
from trimoe.io.progress import Progress
from trimoe.sandbox import Policy, current, using


@dataclass(frozen=True)
class Settings:
    """Settings that do not depend on the answerer. `limit` takes the first rows of each bench."""

    limit: int | None = None
    name: str | None = None
    data: Path | None = None
    sandbox: Policy = field(default_factory=current)
    ignored: frozenset[str] = frozenset()
    exclude_errors: bool = False
    show: Show | None = None
    progress: Progress | None = None

    def validate(self) -> None:
        """`UsageError` for a limit below 1 or an unknown guard."""
        if self.limit is not None and self.limit < 1:
            raise UsageError("limit must be positive", actual=f"limit {self.limit}", remedy="give 1 or more")
        require_known(self.ignored)


def run_benches(work: Sequence[tuple[Bench, Answerer]], log_path: Path | str, settings: Settings) -> list[RunSummary]:
    """Evaluate each bench with its answerer, in order. All runs are registered before the first reply is requested.

    Raises `Refused` when a guard pauses a run, the server changes or another process evaluates one of the runs,
    `MissingPrerequisite` or `Refused` when a scorer cannot work here, `RunLogError`, `BenchError`. The same call
    resumes.
    """
    settings.validate()
    with using(settings.sandbox):
        require_scorers([bench for bench, _ in work])
        with RunLog(log_path) as log:
            jobs = [_start(log, bench, answerer, settings) for bench, answerer in work]
            shows = [show for show in (settings.show, _progress(settings, jobs)) if show]

            def show(tally: Tally) -> None:
                for one in shows:
                    one(tally)

            with locked(log.path, [job.run for job in jobs]):
                return [_complete(log, job, one, settings, show) for job, (_, one) in zip(jobs, work, strict=True)]


def require_scorers(benches: Sequence[Bench]) -> None:
    """Raise what would keep a bench's scorer from working (no sandbox, no compiler), before replies are generated."""
    for bench in benches:
        if bench.needs:
            bench.needs()


def _progress(settings: Settings, jobs: Sequence[Job]) -> Show | None:
    return as_show(settings.progress, [len(job.docs) for job in jobs]) if settings.progress else None


def _start(log: RunLog, bench: Bench, answerer: Answerer, settings: Settings) -> Job:
    """Register the run, or find it, and judge stored replies whose verdict is outdated."""
    docs = bench.docs(settings.data)
    bench.require_statements(docs[: settings.limit])
    run = log.start(
        settings.name or answerer.label,
        bench.name,
        bench.spec(docs),
        answerer.model,
        answerer.sampler(bench),
        _details(answerer, settings),
    )
    if rows := score_stored(log, run, bench, docs, outdated_only=True):
        log.event(run, "rescoring", rows=rows, sandbox=settings.sandbox.describe())
    return Job(bench, docs[: settings.limit], run)


def _details(answerer: Answerer, settings: Settings) -> Mapping[str, object]:
    return {
        **answerer.settings,
        "sandbox": settings.sandbox.describe(),
        "ignored_guards": sorted(settings.ignored),
    }


def _complete(log: RunLog, job: Job, answerer: Answerer, settings: Settings, show: Show) -> RunSummary:
    """Request what is missing of one run and store its result."""
    missing = missing_rows(log, job)
    if missing:
        answerer.prepare()
    if missing or answerer.event_if_complete:
        log.event(job.run, answerer.event, missing=len(missing), of=len(job.docs), **_details(answerer, settings))
    if missing:
        answer_missing(log, job, missing, answerer, ignored=settings.ignored, show=show)
    else:
        require_sound(log, job.run, [doc.doc_id for doc in job.docs], settings.ignored)
        show(Tally(job.bench.name, len(job.docs), len(job.docs)))
    if is_paused(log, job.run):
        log.event(job.run, CONCLUDED)
    doc_ids = [doc.doc_id for doc in job.docs]
    return conclude(log, job.run, job.bench.scorer, doc_ids, settings.exclude_errors)


def missing_rows(log: RunLog, job: Job) -> set[str]:
    """Ids of rows without a reply."""
    stored = {scored.sample.doc_id for scored in log.samples(job.run) if not scored.sample.error}
    return {doc.doc_id for doc in job.docs} - stored


def answer_missing(
    log: RunLog,
    job: Job,
    missing: set[str],
    answerer: Answerer,
    *,
    ignored: frozenset[str] = frozenset(),
    show: Show | None = None,
) -> None:
    """Get the missing replies of a run, store and judge them. `Refused` when a guard or the server stops the run."""
    guard = RunGuard(log, job.run, len(job.docs), ignored)
    tally = Tally(job.bench.name, len(job.docs))
    docs = {doc.doc_id: doc for doc in job.docs}
    stored = [s for s in log.samples(job.run) if s.sample.doc_id in docs and not s.sample.error]
    for known in stored:
        tally.take(known.sample, fresh=False)
        tally.judge(known.verdict)
    guard.replay(stored)
    intake, changed = Intake(log, job, guard.watch, answerer.overrun_mark), ""
    with closing(answerer.answers(job, missing, intake)) as groups:
        try:
            for group in groups:
                for one in group:
                    tally.take(one.sample)
                replies = [one.sample for one in group if not one.sample.error]
                verdicts = judge(job.bench, [(s, docs[s.doc_id]) for s in replies], job.run.sampler.get("context"))
                log.score(job.run, [(s.doc_id, v) for s, v in zip(replies, verdicts, strict=True)], job.bench.scorer)
                for verdict in verdicts:
                    tally.judge(verdict)
                if show:
                    show(tally)
                if tripped := guard.scored([Scored(s, v) for s, v in zip(replies, verdicts, strict=True)]):
                    intake.stop(tripped)
        except ServerChanged as exc:
            changed = str(exc)
    guard.finish(intake.tripped)
    if changed:
        log.event(job.run, PAUSED, server=changed)
        raise Refused(
            f"{job.bench.name} is paused: the server changed during the run",
            expected="the same model and settings until the end",
            actual=changed,
            remedy="restart the server with its first settings and run the same command again, "
            "or use another --log for the new settings",
        )
