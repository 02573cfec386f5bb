"""Judges stored replies and stores the verdicts: after generation, after a scorer changed, and for `rescore`."""

from collections.abc import Sequence

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.evaluate.log.records import Run, Sample
from trimoe.evaluate.log.run_log import RunLog


def judge(bench: Bench, pairs: Sequence[tuple[Sample, Doc]], context: int | None) -> list[Verdict]:
    """Verdicts on replies. `context` is the server's context in tokens per slot, if known."""
    return bench.judge_observed([(sample.observed(), doc) for sample, doc in pairs], context)


def score_stored(log: RunLog, run: Run, bench: Bench, docs: Sequence[Doc], *, outdated_only: bool = False) -> int:
    """Judge the stored replies to `docs` and store the verdicts; returns how many.

    `outdated_only` leaves out replies whose newest verdict is by the bench's current scorer, so that a resumed run
    does not mix scorer versions.
    """
    stored = {scored.sample.doc_id: scored.sample for scored in log.samples(run) if not scored.sample.error}
    done = log.scored_by(run, bench.scorer) if outdated_only else set()
    pairs = [(stored[doc.doc_id], doc) for doc in docs if doc.doc_id in stored and doc.doc_id not in done]
    if pairs:
        verdicts = judge(bench, pairs, run.sampler.get("context"))
        log.score(run, [(s.doc_id, v) for (s, _), v in zip(pairs, verdicts, strict=True)], bench.scorer)
    return len(pairs)
