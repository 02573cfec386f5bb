"""Rows of a comparison from runs: a run's own score, its paired difference to a base, and a total over benches.

Invariants: an item without a verdict counts in no score; a difference covers the items that both runs have scored; p
values are exact. Where a bench asks the same problem several times, problems are the units, not items.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from trimoe.judge.comparison import Detail, Flips, PairedChange, Row, RunScore
from trimoe.judge.gather import Read
from trimoe.judge.measures import split_failures
from trimoe.judge.statistics.bootstrap import cluster_error, paired_bootstrap
from trimoe.judge.statistics.paired import (
    clustered_difference,
    difference_error,
    mcnemar_exact,
    paired_difference,
    sign_flip_exact,
    standard_error,
    wilson,
)
from trimoe.judge.statistics.power import detectable


def own_row(read: Read, detail: bool) -> Row:
    """The row of one run by itself. Uses ids and verdicts only, so samples may come without their texts."""
    scored = list(read.answers.values())
    correct, n = sum(scored), len(scored)
    share = read.score if read.clustered else correct / n if n else None
    error = standard_error(correct, n)
    low, high = wilson(correct, n)
    if read.clustered and n:
        error, low, high = _over_clusters(read, share, n, error)
    causes = dict(sorted(Counter[str](s.verdict.cause for s in read.samples).items()))
    score = RunScore(n, correct, len(read.samples) - n, share, low, high, causes)
    return Row(read.run.bench, read.run.name, score, detail=Detail(error) if detail else None, marks=read.marks)


def _over_clusters(read: Read, share: float | None, n: int, plain: float | None) -> tuple[float | None, float, float]:
    """Standard error and interval of a score whose items repeat: those of the effective number of independent items.

    Where that cannot be measured (one cluster, or all items alike) every cluster counts once.
    """
    if share is None:
        return None, 0.0, 1.0
    clusters = _clusters(read)
    error = cluster_error(clusters)
    worth = float(len(clusters))
    if plain and isfinite(error):
        worth = n / max(1.0, (error / plain) ** 2)
        error = max(error, plain)
    low, high = wilson(share * worth, worth)
    return (error if isfinite(error) else None), low, high


def _clusters(read: Read) -> list[list[int]]:
    """[correct, scored] of each problem."""
    sums: dict[str, list[int]] = {}
    for doc, right in read.answers.items():
        both = sums.setdefault(read.cluster(doc), [0, 0])
        both[0] += right
        both[1] += 1
    return list(sums.values())


def against_base(row: Row, before: Read, now: Read, detail: bool) -> Row:
    """`row` (of `now`) with the paired difference to `before`; unchanged when they share no scored item."""
    was, is_ = before.answers, now.answers
    common = [doc for doc in was if doc in is_]
    pairs = Counter((was[doc], is_[doc]) for doc in common)
    if not pairs:
        return row
    lost, gained, n = pairs[True, False], pairs[False, True], len(common)
    difference, low, high = paired_difference(n, lost, gained)
    p = mcnemar_exact(lost, gained)
    if detail or now.clustered:
        units = [(now.cluster(doc), is_[doc] - was[doc]) for doc in common]
        drawn = paired_bootstrap(units)
        over_clusters = drawn.se if drawn.method == "bootstrap" else None  # else they all agree, or there is only one
        error = over_clusters if now.clustered else difference_error(n, lost, gained)
        if now.clustered:
            sums = Counter[str]()
            for cluster, change in units:
                sums[cluster] += change
            _, low, high = clustered_difference(n, lost, gained, over_clusters, drawn.units)
            p = sign_flip_exact(list(sums.values()))
        if detail and row.detail is not None:
            seen = None if now.clustered else detectable(n, (lost + gained) / n)
            row = replace(row, detail=Detail(row.detail.se, error, drawn.low, drawn.high, drawn.units, seen))
    flips = _flips(before, now)
    paired = PairedChange(n, difference, low, high, lost, gained, p, flips=flips)
    return replace(row, change=paired, base_marks=before.marks)


def _flips(before: Read, now: Read) -> Flips:
    """Losses with the cause of the new miss, gains with the cause of the old one."""
    was, is_ = before.answers, now.answers
    lost = [s for s in now.samples if is_.get(s.sample.doc_id) is False and was.get(s.sample.doc_id)]
    gained = [s for s in before.samples if was.get(s.sample.doc_id) is False and is_.get(s.sample.doc_id)]
    return Flips(
        tuple((s.sample.doc_id, s.verdict.cause) for s in lost),
        tuple((s.sample.doc_id, s.verdict.cause) for s in gained),
        split_failures(lost),
    )


def overall(rows: Sequence[Row]) -> Row:
    """All benches of one model as one row: every item counts once, flips are summed. One test, so no Holm."""
    scores = [row.score for row in rows]
    n, correct = sum(s.n for s in scores), sum(s.correct for s in scores)
    low, high = wilson(correct, n)
    causes = dict(sorted(sum((Counter(s.causes) for s in scores), Counter[str]()).items()))
    marks = tuple(dict.fromkeys(mark for row in rows for mark in row.marks))
    share = correct / n if n else None
    row = Row("all", rows[0].name, RunScore(n, correct, sum(s.unscored for s in scores), share, low, high, causes))
    row = replace(row, marks=marks, base_marks=tuple(dict.fromkeys(m for r in rows for m in r.base_marks)))
    changes = [r.change for r in rows if r.change is not None]
    if len(changes) < len(rows):
        return row
    lost, gained, pairs = sum(c.lost for c in changes), sum(c.gained for c in changes), sum(c.pairs for c in changes)
    difference, d_low, d_high = paired_difference(pairs, lost, gained)
    change = PairedChange(pairs, difference, d_low, d_high, lost, gained, mcnemar_exact(lost, gained))
    return replace(row, change=change)
