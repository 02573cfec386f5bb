"""Judges every stored reply of a run log again, offline, with the scorers of this version."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trimoe.bench.bench import Bench, Doc, rows_sha256
from trimoe.bench.catalog import benches as shipped
from trimoe.bench.catalog import find
from trimoe.errors import BenchError, UsageError
from trimoe.evaluate.log.lock import locked
from trimoe.evaluate.log.records import Run
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import Evaluation, RunSummary, conclude, summarize
from trimoe.evaluate.loop import require_scorers
from trimoe.evaluate.recorded.repeats import epoch_id
from trimoe.evaluate.scoring import score_stored
from trimoe.io.progress import Progress, silent
from trimoe.sandbox import Policy, current, using


def rescore(
    log: str | Path,
    *,
    bench: str | Bench | Sequence[str | Bench] = (),
    data: str | Path | None = None,
    sandbox: Policy | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Judge every stored reply again and store the new results. Nothing is generated.

    `bench` names the files of benches that are not shipped with trimoe. Imported runs are judged again only with
    `data`, because their rows are not kept in the log. Runs of lm-eval tasks keep lm-eval's verdicts. Raises
    `UsageError` for a run of an unknown bench, `BenchError` if the rows are not those of the run. Nothing is written
    until every run has been checked. `progress` counts rows, run by run.
    """
    names = [bench] if isinstance(bench, str | Bench) else list(bench)
    own = {found.name.partition(":")[0]: found for found in find(names)} if names else {}
    folder = Path(data) if data is not None else None
    with using(sandbox or current()), RunLog(log, create=False) as opened:
        work = [(run, *_judged_by(run, own, folder)) for run in opened.runs()]
        with locked(Path(log), [run for run, found, _ in work if found is not None]):
            summaries, done, total = [], 0, sum(len(rows) for _, _, rows in work)
            for run, found, rows in work:
                progress(done, total, run.bench)
                summaries.append(_rescored(opened, run, found, rows))
                done += len(rows)
            return Evaluation(Path(log), tuple(summaries))


def _judged_by(run: Run, own: Mapping[str, Bench], data: Path | None) -> tuple[Bench | None, list[Doc]]:
    """The bench of a run with its rows; None for a run that keeps its verdicts."""
    if "lm_eval" in run.spec or ("imported" in run.spec and data is None):
        return None, []
    bench = _bench_of(run.bench, own)
    require_scorers([bench])
    rows = bench.docs(data)
    _require_same_rows(run, rows)
    epochs = run.spec.get("epochs", 1)
    return bench, [
        replace(row, doc_id=epoch_id(row.doc_id, epoch, epochs)) for epoch in range(1, epochs + 1) for row in rows
    ]


def _rescored(log: RunLog, run: Run, bench: Bench | None, rows: Sequence[Doc]) -> RunSummary:
    if bench is not None:
        log.event(run, "rescoring", sandbox=current().describe())
        score_stored(log, run, bench, rows)
        for asked in {result.asked for result in log.results(run)}:
            conclude(log, run, bench.scorer, [doc.doc_id for doc in rows[:asked]], exclude_errors=False)
    return summarize(log, run)


def _bench_of(name: str, own: Mapping[str, Bench]) -> Bench:
    """The bench of a run: one of `own` (by base name), or a shipped one."""
    base, *variants = name.split(":")
    if base in own:
        build = own[base].build
        return build(variants) if build else own[base].variant(variants)
    if base not in shipped():
        raise UsageError(
            f"the log has a run of {name}, which is not a shipped bench",
            expected="the bench's TOML file",
            remedy="add --bench FILE.toml",
        )
    return find([name])[0]


def _require_same_rows(run: Run, rows: Sequence[Doc]) -> None:
    """`BenchError` if the rows differ from those of the run: verdicts on other questions would look plausible."""
    asked, found = run.spec.get("dataset"), rows_sha256(rows)
    if "imported" not in run.spec and asked is not None and asked != found:
        raise BenchError(
            f"run {run.name} on {run.bench} was made with other rows",
            expected=f"rows with hash {asked[:16]}",
            actual=f"{found[:16]} of {len(rows)} rows",
            remedy="give the data and the prompt that the run was made with",
        )
