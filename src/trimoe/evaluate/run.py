"""Evaluates a model on benches and keeps every sample.

Invariants: what was stored is never generated again; batches are cut from the bench's whole list, so a resumed run
generates the very batches an undisturbed one does and ends with the same log except timings; a sample the harness could
not score is tried again and is never a wrong answer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench, Doc, rows_sha256
from trimoe.bench.catalog import benches as shipped
from trimoe.bench.catalog import find
from trimoe.errors import BenchError, UsageError
from trimoe.evaluate.asking import Job, Show, Tally, ask_missing, judged, sampler_of
from trimoe.evaluate.client import Patience
from trimoe.evaluate.guarding import RunGuard, require_sound
from trimoe.evaluate.guards import require_known
from trimoe.evaluate.log.records import Run, Sample, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary, conclude, summarize
from trimoe.io.progress import Progress
from trimoe.io.publish import sha256_json
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.generate import SAMPLER, Generator, Reply
from trimoe.sandbox import Policy, current, using
from trimoe.serve.endpoint import Endpoint

__all__ = ["RunSummary", "evaluate", "evaluate_endpoint", "rescore", "summarize"]


def evaluate(
    model_dir: Path | str,
    benches: Sequence[str | Bench],
    log_path: Path | str,
    *,
    limit: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    data: Path | None = None,
    sandbox: Policy | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
) -> list[RunSummary]:
    """Generate, score and store what is missing of each bench; one summary per bench, in the order asked for.

    `limit` takes the first rows of each bench (the same run continues when it is raised); `name` labels the model in
    tables (default: its folder's name); `sandbox` is how generated code is run, and is recorded, as `ignore_guards` is;
    `exclude_errors` gives a run a score although rows of it could not be scored. Raises `UsageError`,
    `CheckpointError`, `RunLogError`, `MissingPrerequisite`, and `Refused` when a guard pauses the run; the same call
    goes on.
    """
    if (limit is not None and limit < 1) or batch_size < 1:
        raise UsageError("limit and batch size must be positive", actual=f"limit {limit}, batch size {batch_size}")
    wanted, ignored = find(benches), frozenset(ignore_guards)
    require_known(ignored)
    checkpoint = open_checkpoint(model_dir)
    label = name or checkpoint.path.resolve().name
    policy = sandbox or current()
    _require_scorers(wanted, policy)
    settings = {"batch_size": batch_size, "device": device, "path": str(model_dir), "sandbox": policy.describe()}
    with using(policy), RunLog(log_path) as log:
        jobs = []
        for bench in wanted:
            docs = bench.docs(data)
            bench.require_statements(docs[:limit])
            run = log.start(label, bench.name, bench.spec(docs), checkpoint.fingerprint, SAMPLER, settings)
            jobs.append(Job(bench, docs[:limit], run))
            _rescore(log, run, bench, docs)
        total = sum(len(job.docs) for job in jobs)
        done = 0
        model: Generator | None = None  # loaded once, and only if something is missing
        for job in jobs:
            missing = _missing(log, job)
            if missing:
                model = model or Generator(checkpoint.path, device)
                log.event(
                    job.run,
                    "generating",
                    missing=len(missing),
                    of=len(job.docs),
                    ignored_guards=sorted(ignored),
                    **settings,
                )
                for count in _generate(log, job, missing, model, batch_size, ignored):
                    if progress:
                        progress(done + count, total, job.bench.name)
            else:
                require_sound(log, job.run, [doc.doc_id for doc in job.docs], ignored)
            done += len(job.docs)
            if progress:
                progress(done, total, job.bench.name)
        return _conclude(log, jobs, exclude_errors)


def evaluate_endpoint(
    endpoint: Endpoint,
    benches: Sequence[str | Bench],
    log_path: Path | str,
    *,
    limit: int | None = None,
    name: str | None = None,
    patience: Patience | None = None,
    data: Path | None = None,
    sandbox: Policy | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
    preflight: Mapping[str, Any] | None = None,
    show: Show | None = None,
) -> list[RunSummary]:
    """The same on a running server. Rows that failed before are asked for again, rows that were stored are not.

    `preflight` is the report of the server's check, None if there was none; it is recorded, as `ignore_guards` is. A
    run without it is marked, and so is one that an ignored guard would have paused. `patience` holds the operational
    limits; without it the bench's spec sets concurrency and timeout. Raises `Refused` when a guard pauses the run or
    the server changes under it; the same call goes on.
    """
    if limit is not None and limit < 1:
        raise UsageError("limit must be positive", actual=f"limit {limit}")
    wanted, ignored, policy = find(benches), frozenset(ignore_guards), sandbox or current()
    require_known(ignored)
    _require_scorers(wanted, policy)
    details = {
        "sandbox": policy.describe(),
        "preflight": False if preflight is None else dict(preflight),
        "ignored_guards": sorted(ignored),
        "operational": {"url": endpoint.url, **endpoint.operational},
    }
    with using(policy), RunLog(log_path) as log:
        jobs = []
        for bench in wanted:
            docs = bench.docs(data)
            bench.require_statements(docs[:limit])
            run = log.start(
                name or endpoint.model,
                bench.name,
                bench.spec(docs),
                served_model(endpoint),
                sampler_of(bench, endpoint),
                details,
            )
            jobs.append(Job(bench, docs[:limit], run))
            _rescore(log, run, bench, docs)
        for job in jobs:
            missing = _missing(log, job)
            log.event(job.run, "asking", missing=len(missing), of=len(job.docs), **details)
            if missing:
                limits = patience or patience_of(job.bench, endpoint)
                ask_missing(log, job, missing, endpoint, limits, ignored=ignored, show=show)
            else:
                require_sound(log, job.run, [doc.doc_id for doc in job.docs], ignored)
                if show:
                    show(Tally(job.bench.name, len(job.docs), len(job.docs)))
        return _conclude(log, jobs, exclude_errors)


def served_model(endpoint: Endpoint) -> str:
    """The model of a run's identity: its hash, or of a stranger's server its name, place and what it says of itself."""
    if endpoint.model_hash is not None:
        return endpoint.model_hash
    told = sha256_json(endpoint.operational.get("says of its model"))[:16]
    return f"unverified {endpoint.model} at {endpoint.url} ({told})"


def patience_of(bench: Bench, endpoint: Endpoint) -> Patience:
    """Requests at once and seconds per attempt, as the bench's spec has them, within the server's slots."""
    if bench.protocol is None:
        return Patience(endpoint.slots or Patience.concurrency)
    serving = bench.protocol.serving
    return Patience(endpoint.slots or serving.parallel, serving.timeout_s, 3.0 * serving.timeout_s)


def _conclude(log: RunLog, jobs: Sequence[Job], exclude_errors: bool) -> list[RunSummary]:
    return [conclude(log, job.run, job.bench.scorer, [doc.doc_id for doc in job.docs], exclude_errors) for job in jobs]


def _require_scorers(benches: Sequence[Bench], policy: Policy) -> None:
    """Ask before the first reply is generated what would keep it from being scored."""
    with using(policy):
        for bench in benches:
            if bench.needs:
                bench.needs()


def _rescore(log: RunLog, run: Run, bench: Bench, docs: Sequence[Doc]) -> None:
    """Score every stored reply whose newest verdict is not one of this scorer, so that no run mixes scorers."""
    stored = {scored.sample.doc_id: scored.sample for scored in log.samples(run) if not scored.sample.error}
    known = log.scored_by(run, bench.scorer)
    unscored = [(stored[d.doc_id], d) for d in docs if d.doc_id in stored and d.doc_id not in known]
    if unscored:
        verdicts = judged(bench, unscored, run.sampler.get("context"))
        log.score(run, [(s.doc_id, v) for (s, _), v in zip(unscored, verdicts, strict=True)], bench.scorer)
        log.event(run, "rescoring", rows=len(unscored), sandbox=current().describe())


def _missing(log: RunLog, job: Job) -> set[str]:
    """Ids that have no reply yet."""
    stored = {scored.sample.doc_id for scored in log.samples(job.run) if not scored.sample.error}
    return {doc.doc_id for doc in job.docs} - stored


def _generate(
    log: RunLog, job: Job, missing: set[str], model: Generator, batch_size: int, ignored: frozenset[str]
) -> Iterator[int]:
    """Generate, score and store batch by batch; yields the number of rows that are there after each.

    `Refused` when a guard trips, after the batch that tripped it is stored.
    """
    chosen = {doc.doc_id for doc in job.docs}
    guard = RunGuard(log, job.run, len(job.docs), ignored)
    guard.replay([scored for scored in log.samples(job.run) if scored.sample.doc_id in chosen])
    encoded = {doc.doc_id: model.encode(doc.prompt, doc.history) for doc in job.docs}
    model.require_room(list(encoded.values()), job.bench.max_new_tokens)
    places = {doc.doc_id: i for i, doc in enumerate(job.docs)}
    # similar lengths together; cut from the whole list, so that a resumed run makes the same batches
    order = sorted(job.docs, key=lambda doc: (-len(encoded[doc.doc_id]), doc.doc_id))
    count = len(job.docs) - len(missing)
    for start in range(0, len(order), batch_size):
        batch = [doc for doc in order[start : start + batch_size] if doc.doc_id in missing]
        if not batch:
            continue
        replies = [
            cut_at_stops(reply, job.bench.stops)
            for reply in model.reply([encoded[doc.doc_id] for doc in batch], job.bench.max_new_tokens)
        ]
        samples = [_sample(doc, places[doc.doc_id], reply) for doc, reply in zip(batch, replies, strict=True)]
        verdicts = judged(job.bench, list(zip(samples, batch, strict=True)), None)
        log.add(job.run, list(zip(samples, verdicts, strict=True)), job.bench.scorer)
        guard.take([Scored(sample, verdict) for sample, verdict in zip(samples, verdicts, strict=True)])
        count += len(batch)
        yield count
    guard.finish()


def cut_at_stops(reply: Reply, stops: Sequence[str]) -> Reply:
    """The reply up to the first stop text, as a server would have ended it. Tokens stay those that were generated."""
    places = [place for stop in stops if (place := reply.text.find(stop)) >= 0]
    return replace(reply, text=reply.text[: min(places)], finish_reason="stop") if places else reply


def _sample(doc: Doc, position: int, reply: Reply) -> Sample:
    return Sample(
        doc.doc_id, position, doc.asked(), reply.text, reply.finish_reason, reply.prompt_tokens, reply.reply_tokens
    )


def _again(name: str, own: Mapping[str, Bench]) -> Bench:
    """The bench that a run names: one of `own` (by base name), or a shipped one."""
    base, *variants = name.split(":")
    if base in own:
        build = own[base].build
        return build(variants) if build else own[base].variant(variants)
    if base not in shipped():
        raise UsageError(
            f"the log has a run of {name}, which is no shipped bench",
            expected="its file",
            remedy="add --bench FILE.toml",
        )
    return find([name])[0]


def _require_asked(run: Run, rows: Sequence[Doc]) -> None:
    """`BenchError` when the rows are not those that the run was asked: verdicts of other questions would look right."""
    asked, found = run.spec.get("dataset"), rows_sha256(rows)
    if "imported" not in run.spec and asked is not None and asked != found:
        raise BenchError(
            f"run {run.name} on {run.bench} was asked other rows",
            expected=f"rows with hash {asked[:16]}",
            actual=f"{found[:16]} of {len(rows)} rows",
            remedy="give the data and the prompt that the run was made with",
        )


def rescore(
    log_path: Path | str, data: Path | None = None, sandbox: Policy | None = None, benches: Sequence[str | Bench] = ()
) -> list[RunSummary]:
    """Judge every stored reply again with the scorers of this version, offline. `benches` are those that are not
    shipped.

    Imported runs are judged again only with `data`: their rows came with the record and are not kept in the log. Runs
    of lm-eval tasks stay as lm-eval scored them.
    """
    policy = sandbox or current()
    own = {bench.name.partition(":")[0]: bench for bench in find(benches)} if benches else {}
    with using(policy), RunLog(log_path, create=False) as log:
        work: list[tuple[Run, Bench | None, list[Doc]]] = []
        for run in log.runs():  # everything that can be refused comes before the first verdict is written
            if "lm_eval" in run.spec or ("imported" in run.spec and data is None):
                work.append((run, None, []))
                continue
            found = _again(run.bench, own)
            _require_scorers([found], policy)
            rows = found.docs(data)
            _require_asked(run, rows)
            work.append((run, found, rows))
        summaries = []
        for run, bench, rows in work:
            if bench is None:
                summaries.append(summarize(log, run))
                continue
            log.event(run, "rescoring", sandbox=policy.describe())
            docs = {doc.doc_id: doc for doc in rows}
            samples = [s.sample for s in log.samples(run) if s.sample.doc_id in docs and not s.sample.error]
            verdicts = judged(bench, [(s, docs[s.doc_id]) for s in samples], run.sampler.get("context"))
            log.score(run, list(zip([s.doc_id for s in samples], verdicts, strict=True)), bench.scorer)
            for asked in {result.asked for result in log.results(run)}:
                conclude(log, run, bench.scorer, [doc.doc_id for doc in rows[:asked]], exclude_errors=False)
            summaries.append(summarize(log, run))
        return summaries
