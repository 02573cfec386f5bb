"""Results of runs: score, standard error, causes, ceilings, and the marks shown with them.

Invariants: a run with unscored rows has no score until they are scored or explicitly excluded (`exclude_errors`, which
adds a mark). The score of a bench in parts is the mean of its parts. All of a result is stored together.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimoe.bench.cause import Ceilings, Limits, ceilings
from trimoe.bench.stated import disagreements
from trimoe.evaluate.log.marks import left_out, marks_of, stated
from trimoe.evaluate.log.reader import LogReader
from trimoe.evaluate.log.records import Result, Run, Scored
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.score import score_of as score_of


@dataclass(frozen=True)
class RunSummary:
    """One run's result over its first `n` rows. `score` is correct / scored, None while a row is not scored.

    For a bench in parts (languages) it is the mean of the parts, None if one of them could not be scored. `errors`
    counts rows without a reply; `unscored` includes them. `score` and `standard_error` are in [0, 1]. `marks` are
    caveats (an ignored guard, no sandbox, ...); `ceilings` tells whether token limits cut replies.
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
    errors: int = 0
    standard_error: float | None = None
    ceilings: dict[str, Any] | None = None
    marks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The runs of one call, in the order of the benches, and the log that holds their samples."""

    log: Path
    runs: tuple[RunSummary, ...]

    @property
    def scores(self) -> dict[str, float | None]:
        """Score in [0, 1] by bench; None while rows are not scored."""
        return {run.bench: run.score for run in self.runs}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"log": str(self.log), "runs": [run.as_dict() for run in self.runs]}

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{run.bench} {'not scored' if run.score is None else f'{100 * run.score:.1f} %'}{' !' * bool(run.marks)}"
            for run in self.runs
        )
        return f"Evaluation({str(self.log)!r}: {scores})"


def summarize(
    log: LogReader, run: Run, doc_ids: Sequence[str] | None = None, *, exclude_errors: bool = False
) -> RunSummary:
    """The result of a run over the rows `doc_ids`, or over all stored ones."""
    chosen = set(doc_ids) if doc_ids is not None else None
    samples = [s for s in log.samples(run) if chosen is None or s.sample.doc_id in chosen]
    verdicts = [s.verdict for s in samples]
    unscored = sum(v.correct is None for v in verdicts)
    score, error, parts = score_of(run, samples, exclude_errors=exclude_errors)
    marks = [mark.text for mark in marks_of(log, run)]
    if exclude_errors and unscored:
        marks.append(left_out(unscored).text)
    if other := disagreements(v.detail for v in verdicts):
        marks.append(stated(other).text)
    if read := sum(s.sample.fallback for s in samples):
        marks.append(f"{read} read from the reasoning")
    limited = run_ceilings(run, samples)
    return RunSummary(
        run.run_id,
        run.bench,
        run.model,
        run.name,
        len(verdicts),
        sum(v.correct is True for v in verdicts),
        unscored,
        score,
        dict(sorted(Counter[str](v.cause for v in verdicts).items())),
        parts,
        sum(bool(s.sample.error) for s in samples),
        error,
        None if limited is None else asdict(limited),
        tuple(marks),
    )


def conclude(log: RunLog, run: Run, scorer: int, doc_ids: Sequence[str] | None, exclude_errors: bool) -> RunSummary:
    """Summarize a run and store the result."""
    s = summarize(log, run, doc_ids, exclude_errors=exclude_errors)
    asked = s.n if doc_ids is None else len(doc_ids)
    scored = s.n - s.unscored
    log.conclude(
        run,
        Result(asked, scorer, s.correct, scored, s.unscored, s.score, s.standard_error, s.causes, s.ceilings, s.marks),
    )
    return s


def limits_of(run: Run) -> Limits:
    """Token limits of a run: cap and thinking budget of its bench, context of its server."""
    think = (run.spec.get("generation") or {}).get("think_budget", 0)
    return Limits(int(run.spec.get("max_new_tokens", 0)), int(think), run.sampler.get("context"))


def run_ceilings(run: Run, samples: Sequence[Scored]) -> Ceilings | None:
    """How token limits affected a run's scored replies; None if a count or the limits are unknown."""
    limits = limits_of(run)
    scored = [s for s in samples if s.verdict.correct is not None]
    seen = [s.sample.observed() for s in scored]
    counts = [o.tokens for o in seen]
    if not limits.cap or not counts or any(count is None for count in counts):
        return None
    # The answer's share of the cap is a ceiling only if every answer is counted separately from its reasoning.
    uncounted = any(o.reasoning.strip() and o.reasoning_tokens is None for o in seen)
    split = not uncounted and any(o.reasoning_tokens for o in seen)
    tokens = [(o.content_tokens if split else o.tokens) or 0 for o in seen]
    return ceilings(
        tokens,
        [s.verdict.correct is True for s in scored],
        limits,
        split=split,
        whole=[o.tokens or 0 for o in seen],
        stopped=[o.finish_reason == "stop" for o in seen],
        cut=[o.finish_reason == "length" for o in seen],
    )
