"""Checks of a variant against its base, on the items that both have answered (protocol section 9)."""

from collections.abc import Iterator, Sequence

import numpy as np

from trimoe.evaluate.log.records import Scored
from trimoe.judge.audit.check import Check
from trimoe.judge.audit.rules import Rules, Thresholds
from trimoe.judge.measures import looped, split_failures


def pair_checks(before: Sequence[Scored], after: Sequence[Scored], limits: Thresholds, r: Rules) -> Iterator[Check]:
    """LOOP_REGRESSION, SAT_WARN, LEN_BLOAT, KNOWLEDGE_SHIFT, CLEAN_TRADE of `after` against `before`."""
    one, two = ({s.sample.doc_id: s for s in run if s.verdict.correct is not None} for run in (before, after))
    common = [i for i in one if i in two]
    n = len(common)
    if not n:
        yield Check("KNOWLEDGE_SHIFT", "not checked", "no item is scored in both runs")
        return
    b, a = _Side([one[i] for i in common], limits), _Side([two[i] for i in common], limits)
    loop, normal, score = 100 * (a.loops - b.loops) / n, 100 * (a.normal - b.normal) / n, 100 * (a.right - b.right) / n

    def row(flag: str, fires: bool, text: str, value: float, limit: float) -> Check:
        return Check(flag, r.levels[flag] if fires else "ok", f"{text} on {n} common items", value, limit)

    yield row(
        "LOOP_REGRESSION",
        loop >= limits.loop_regression_pp,
        f"loops {b.loops} to {a.loops} ({loop:+.1f} pp)",
        loop,
        limits.loop_regression_pp,
    )
    share, was = a.saturated / n, b.saturated / n
    warn = limits.saturated_warn <= share <= limits.saturated_collapse and share > limits.saturated_times * was
    yield row("SAT_WARN", warn, f"very long replies {b.saturated} to {a.saturated}", share, limits.saturated_warn)
    longer = a.median / b.median if b.median else float(a.median > 0)
    yield row(
        "LEN_BLOAT",
        longer > limits.len_bloat,
        f"median length {b.median:.0f} to {a.median:.0f} characters",
        longer,
        limits.len_bloat,
    )
    knowledge = score <= -limits.knowledge_pp and normal >= limits.normal_failures_pp
    text = f"score {score:+.2f} pp, failures of normal length {normal:+.2f} pp"
    yield row("KNOWLEDGE_SHIFT", knowledge, text, score, -limits.knowledge_pp)
    trade = score <= -limits.trade_pp and a.saturated < b.saturated and not a.loops and not knowledge
    text = f"score {score:+.2f} pp with fewer very long replies and no loops"
    yield row("CLEAN_TRADE", trade, text if trade else "no loss of score for shorter replies", score, -limits.trade_pp)


class _Side:
    def __init__(self, samples: Sequence[Scored], limits: Thresholds) -> None:
        self.right = sum(s.verdict.correct is True for s in samples)
        self.normal = split_failures([s for s in samples if s.verdict.correct is False])["normal"]
        self.loops = sum(map(looped, samples))
        self.saturated = sum(len(s.sample.reply) > limits.saturated_chars for s in samples)
        self.median = float(np.median([len(s.sample.reply) for s in samples]))
