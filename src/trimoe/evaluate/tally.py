"""Live counts of a bench that is being evaluated, for progress displays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from trimoe.bench.bench import Verdict
from trimoe.evaluate.log.records import Sample
from trimoe.io.progress import Progress


@dataclass
class Tally:
    """Counts of one bench. `fresh` replies arrived during this call, with `tokens` tokens; `began` and `last` are
    readings of the monotonic clock."""

    bench: str
    total: int
    done: int = 0
    scored: int = 0
    correct: int = 0
    empty: int = 0
    truncated: int = 0
    errors: int = 0
    tokens: int = 0
    fresh: int = 0
    began: float = field(default_factory=monotonic)
    last: float = 0.0

    def take(self, sample: Sample, fresh: bool = True) -> None:
        """Count one stored sample."""
        self.fresh += fresh
        self.last = monotonic()
        if sample.error:
            self.errors += 1
            return
        self.done += 1
        self.empty += not sample.reply.strip()
        self.truncated += sample.finish_reason == "length"
        self.tokens += max(sample.reply_tokens, 0) if fresh else 0

    def judge(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.scored += verdict.correct is not None
        self.correct += verdict.correct is True


Show = Callable[[Tally], None]


def as_show(progress: Progress, totals: Sequence[int]) -> Show:
    """A `Show` that reports rows over all benches to `progress`. `totals` are the benches' rows, in their order."""
    finished: dict[str, int] = {}  # bench -> rows done or failed

    def show(tally: Tally) -> None:
        finished[tally.bench] = tally.done + tally.errors
        progress(sum(finished.values()), sum(totals), tally.bench)

    return show
