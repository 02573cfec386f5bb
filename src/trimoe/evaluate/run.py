"""Evaluates a model on benches and keeps every sample.

Invariants: what was stored is never generated again; batches are cut from the bench's whole list, so a resumed run
generates the very batches an undisturbed one does and ends with the same log except timings; a sample the harness could
not score is tried again and is never a wrong answer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trimoe.errors import UsageError
from trimoe.evaluate.bench import Bench, Doc, Verdict, find
from trimoe.evaluate.generate import SAMPLER, Generator, Reply
from trimoe.evaluate.log import Run, RunLog, Sample, Scored
from trimoe.evaluate.sandbox import Policy, current, using
from trimoe.model.checkpoint import open_checkpoint

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunSummary:
    """One run's result over its first `n` rows. `score` is correct / scored, None when nothing could be scored.

    Of a bench in parts (languages) it is the mean of the parts, None when one of them could not be scored.
    """

    run_id: int
    bench: str
    model: str
    name: str
    n: int
    correct: int
    unscored: int
    score: float | None
    causes: dict[str, int]
    parts: dict[str, float | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    bench: Bench
    docs: list[Doc]
    run: Run


def evaluate(
    model_dir: Path | str,
    benches: Sequence[str],
    log_path: Path | str,
    *,
    limit: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    data: Path | None = None,
    sandbox: Policy | None = None,
) -> list[RunSummary]:
    """Generate, score and store what is missing of each bench; one summary per bench, in the order asked for.

    `limit` takes the first rows of each bench (the same run continues when it is raised); `name` labels the model in
    tables (default: its folder's name); `sandbox` is how generated code is run, and is recorded. Raises `UsageError`,
    `CheckpointError`, `RunLogError`, `MissingPrerequisite`, `Refused`.
    """
    if (limit is not None and limit < 1) or batch_size < 1:
        raise UsageError("limit and batch size must be positive", actual=f"limit {limit}, batch size {batch_size}")
    wanted = find(benches)
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
            jobs.append(_Job(bench, docs[:limit], run))
        total = sum(len(job.docs) for job in jobs)
        done = 0
        model: Generator | None = None  # loaded once, and only if something is missing
        for job in jobs:
            missing = _rescore(log, job)
            if missing:
                model = model or Generator(checkpoint.path, device)
                log.event(job.run, "generating", missing=len(missing), of=len(job.docs), **settings)
                for count in _generate(log, job, missing, model, batch_size):
                    if progress:
                        progress(done + count, total, job.bench.name)
            done += len(job.docs)
            if progress:
                progress(done, total, job.bench.name)
        return [summarize(log, job.run, [doc.doc_id for doc in job.docs]) for job in jobs]


def _require_scorers(benches: Sequence[Bench], policy: Policy) -> None:
    """Ask before the first reply is generated what would keep it from being scored."""
    with using(policy):
        for bench in benches:
            if bench.needs:
                bench.needs()


def _rescore(log: RunLog, job: _Job) -> set[str]:
    """Score stored replies that have no verdict of this scorer; returns the ids that were never generated."""
    stored = {scored.sample.doc_id: scored for scored in log.samples(job.run)}
    here = [doc for doc in job.docs if doc.doc_id in stored]
    known = log.scored_by(job.run, job.bench.scorer)
    unscored = [doc for doc in here if doc.doc_id not in known]
    verdicts = job.bench.judge(
        [(stored[d.doc_id].sample.reply, stored[d.doc_id].sample.finish_reason, d) for d in unscored]
    )
    if unscored:
        log.score(job.run, list(zip([d.doc_id for d in unscored], verdicts, strict=True)), job.bench.scorer)
    return {doc.doc_id for doc in job.docs} - stored.keys()


def _generate(log: RunLog, job: _Job, missing: set[str], model: Generator, batch_size: int) -> Iterator[int]:
    """Generate, score and store batch by batch; yields the number of rows that are there after each."""
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
        verdicts = job.bench.judge([(r.text, r.finish_reason, doc) for r, doc in zip(replies, batch, strict=True)])
        samples = [_sample(doc, places[doc.doc_id], reply) for doc, reply in zip(batch, replies, strict=True)]
        log.add(job.run, list(zip(samples, verdicts, strict=True)), job.bench.scorer)
        count += len(batch)
        yield count


def cut_at_stops(reply: Reply, stops: Sequence[str]) -> Reply:
    """The reply up to the first stop text, as a server would have ended it. Tokens stay those that were generated."""
    places = [place for stop in stops if (place := reply.text.find(stop)) >= 0]
    return replace(reply, text=reply.text[: min(places)], finish_reason="stop") if places else reply


def _sample(doc: Doc, position: int, reply: Reply) -> Sample:
    return Sample(
        doc.doc_id, position, doc.asked(), reply.text, reply.finish_reason, reply.prompt_tokens, reply.reply_tokens
    )


def summarize(log: RunLog, run: Run, doc_ids: Sequence[str] | None = None) -> RunSummary:
    """Counts of a run, over some rows or all that are stored."""
    chosen = set(doc_ids) if doc_ids is not None else None
    samples = [s for s in log.samples(run) if chosen is None or s.sample.doc_id in chosen]
    verdicts = [s.verdict for s in samples]
    scored = [v for v in verdicts if v.correct is not None]
    parts = _parts(samples) if run.spec.get("average") == "macro" else {}
    return RunSummary(
        run.run_id,
        run.bench,
        run.model,
        run.name,
        len(verdicts),
        sum(v.correct is True for v in scored),
        len(verdicts) - len(scored),
        _macro(parts) if parts else _share(verdicts),
        dict(sorted(Counter[str](v.cause for v in verdicts).items())),
        parts,
    )


def _parts(samples: Sequence[Scored]) -> dict[str, float | None]:
    """Score of each part; the part is what stands before "::" in a row's id. Imported rows may have none."""
    parts: dict[str, list[Verdict]] = {}
    for scored in samples:
        part, mark, _ = scored.sample.doc_id.partition("::")
        if mark:
            parts.setdefault(part, []).append(scored.verdict)
    return {name: _share(verdicts) for name, verdicts in parts.items()}


def _macro(parts: dict[str, float | None]) -> float | None:
    """Mean of the parts; a part that was not run makes the whole unknown, never lower."""
    known = [score for score in parts.values() if score is not None]
    return sum(known) / len(known) if len(known) == len(parts) else None


def _share(verdicts: Sequence[Verdict]) -> float | None:
    scored = [v.correct for v in verdicts if v.correct is not None]
    return sum(scored) / len(scored) if scored else None


def rescore(log_path: Path | str, data: Path | None = None, sandbox: Policy | None = None) -> list[RunSummary]:
    """Judge every stored reply again with the scorers of this version, offline.

    Imported runs are judged again only with `data`: their rows came with the record and are not kept in the log.
    """
    policy = sandbox or current()
    with using(policy), RunLog(log_path, create=False) as log:
        summaries = []
        for run in log.runs():
            if "imported" in run.spec and data is None:
                summaries.append(summarize(log, run))
                continue
            bench = find([run.bench])[0]
            _require_scorers([bench], policy)
            log.event(run, "rescoring", sandbox=policy.describe())
            docs = {doc.doc_id: doc for doc in bench.docs(data)}
            samples = [scored.sample for scored in log.samples(run) if scored.sample.doc_id in docs]
            verdicts = bench.judge([(s.reply, s.finish_reason, docs[s.doc_id]) for s in samples])
            log.score(run, list(zip([s.doc_id for s in samples], verdicts, strict=True)), bench.scorer)
            summaries.append(summarize(log, run))
        return summaries
