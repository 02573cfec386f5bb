"""Run benches on a model into a run log; an interrupted run continues where it stopped."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.evaluate.bench import Bench, Sample, Verdict, get_bench
from trimoe.evaluate.generate import Reply, generate
from trimoe.evaluate.log import Row, RunLog
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.load import load_model, load_tokenizer

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunSummary:
    """Counts of one run. `score` is None while any sample is missing or unscored."""

    bench: str
    name: str
    model: str
    n: int
    correct: int
    score: float | None
    causes: dict[str, int] = field(default_factory=dict)


def judge(bench: Bench, sample: Sample, reply: Reply) -> Verdict:
    """Score a reply, naming empty and truncated ones as such."""
    if not reply.text.strip():
        return Verdict(False, "empty")
    verdict = bench.score(reply.text, sample.check)
    if verdict.correct is False and reply.finish_reason == "length":
        return Verdict(False, "truncated", verdict.extracted)
    return verdict


def evaluate(
    model_dir: Path | str,
    benches: list[str],
    log_path: Path,
    *,
    limit: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> list[RunSummary]:
    """Greedy, in process, fp32. `limit` takes the first rows and is part of the run's identity."""
    specs = [get_bench(b) for b in benches]
    checkpoint = open_checkpoint(model_dir)
    loaded: list[Any] = []
    log = RunLog(log_path)
    summaries = []
    try:
        for bench in specs:
            samples = bench.load()[:limit]
            run = log.open_run(
                bench.name,
                bench.identity(samples),
                checkpoint.fingerprint,
                name or checkpoint.path.name,
                {"engine": "in-process", "dtype": "float32", "temperature": 0},
                len(samples),
            )
            done = {row.doc_id for row in log.samples(run) if row.correct is not None}
            todo = [s for s in samples if s.doc_id not in done]
            if todo and not loaded:
                loaded = [load_model(checkpoint.path), load_tokenizer(checkpoint.path)]
            count = len(samples) - len(todo)
            with ThreadPoolExecutor(2) as pool:
                for batch in generate(*loaded, [s.prompt for s in todo], bench.max_new_tokens) if todo else ():
                    pairs = [(todo[i], reply) for i, reply in batch]
                    verdicts = list(pool.map(lambda pair, bench=bench: judge(bench, *pair), pairs))  # type: ignore[misc]
                    log.store(run, [_row(s, r, v, bench) for (s, r), v in zip(pairs, verdicts, strict=True)])
                    count += len(batch)
                    if progress is not None:
                        progress(count, len(samples), bench.name)
            rows = log.samples(run)
            correct, scored = sum(bool(r.correct) for r in rows), sum(r.correct is not None for r in rows)
            summaries.append(
                RunSummary(
                    bench.name,
                    run.name,
                    run.model,
                    len(rows),
                    correct,
                    correct / scored if scored == run.expected else None,
                    dict(sorted(Counter(r.cause for r in rows).items())),
                )
            )
    finally:
        log.close()
    return summaries


def _row(sample: Sample, reply: Reply, verdict: Verdict, bench: Bench) -> Row:
    return Row(
        sample.doc_id,
        sample.prompt,
        reply.text,
        verdict.extracted,
        verdict.correct,
        verdict.cause,
        reply.finish_reason,
        reply.prompt_tokens,
        reply.completion_tokens,
        bench.version,
    )
