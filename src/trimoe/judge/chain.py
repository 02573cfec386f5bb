"""Finds the step of a chain of runs (base, pruned, quantized, served) at which each item was lost.

Invariants: only items scored in every run of the chain count; gains minus losses of all steps add up to the total
difference. A step that also changes engine, sampler or stack is marked: its losses may be due to that change.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import Refused, UsageError
from trimoe.judge.gather import Read, gather, names_of
from trimoe.judge.runs import bench_identity, conditions, differing, unknown_name


@dataclass(frozen=True)
class Step:
    """One step of the chain on one bench. `lost` and `gained` are (doc_id, cause) of the flips in this step.

    `stays` are the items lost here that stay wrong to the end of the chain. `changed` names settings that changed
    besides the model.
    """

    before: str
    after: str
    lost: tuple[tuple[str, str], ...]
    gained: tuple[tuple[str, str], ...]
    stays: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class BenchChain:
    """One bench along the chain: `correct` of `items` common items per run, and the steps between the runs.

    `marks` are the caveats of each run's score, such as a pause.
    """

    bench: str
    items: int
    correct: tuple[int, ...]
    steps: tuple[Step, ...]
    marks: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Chain:
    """The benches that all runs of the chain have in common."""

    names: tuple[str, ...]
    benches: tuple[BenchChain, ...]

    def as_dict(self) -> dict[str, Any]:
        """The chain as JSON values."""
        return asdict(self)


def attribute_chain(
    logs: Sequence[Path | str], names: Sequence[str], benches: Sequence[str] | None = None
) -> tuple[Chain, dict[tuple[str, str], Read]]:
    """The chain, and its runs by (name, bench).

    Raises `UsageError` for unknown names or no common bench, `Refused` when two runs of a bench did not answer the same
    questions.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "a chain needs at least two different names",
            expected="two or more",
            actual=", ".join(names),
            remedy="for example --chain base,pruned,quantized",
        )
    found = gather(logs)
    for name in names:
        if name not in names_of(found):
            raise unknown_name(name, names_of(found), ", ".join(map(str, logs)))
    shared = [b for n, b in found if n == names[0] and all((name, b) in found for name in names)]
    chosen = [b for b in shared if benches is None or b in benches]
    if not chosen:
        raise UsageError(
            f"{', '.join(names)} have no such bench in common",
            expected=", ".join(shared) or "one bench",
            actual=", ".join(benches or ()) or "none",
            remedy="evaluate all of them on it",
        )
    made = tuple(_bench(bench, [found[name, bench] for name in names]) for bench in chosen)
    return Chain(tuple(names), made), found


def _bench(bench: str, reads: Sequence[Read]) -> BenchChain:
    for read in reads[1:]:
        if changed := differing(bench_identity(reads[0].run), bench_identity(read.run)):
            raise Refused(
                f"{read.run.name} and {reads[0].run.name} answered different questions on {bench}",
                expected="the same bench",
                actual=", ".join(changed),
                remedy="evaluate both with the same bench and version",
            )
    answers = [read.answers for read in reads]
    common = [doc for doc in answers[0] if all(doc in each for each in answers)]
    last = {doc: _lost_last([each[doc] for each in answers]) for doc in common}
    steps = tuple(
        _step(reads[i], reads[i + 1], common, [doc for doc in common if last[doc] == i]) for i in range(len(reads) - 1)
    )
    correct = tuple(sum(each[doc] for doc in common) for each in answers)
    return BenchChain(bench, len(common), correct, steps, tuple(read.marks for read in reads))


def _lost_last(right: Sequence[bool]) -> int | None:
    """The step (from 0) after which an item stayed wrong; None if it is right at the end, or never was right."""
    if right[-1] or not any(right):
        return None
    return max(i for i, ok in enumerate(right) if ok)


def _step(before: Read, after: Read, common: Sequence[str], stays: Sequence[str]) -> Step:
    was, is_ = before.answers, after.answers
    cause = [{s.sample.doc_id: s.verdict.cause for s in read.samples} for read in (before, after)]
    return Step(
        before.run.name,
        after.run.name,
        tuple((doc, cause[1][doc]) for doc in common if was[doc] and not is_[doc]),
        tuple((doc, cause[0][doc]) for doc in common if is_[doc] and not was[doc]),
        tuple(stays),
        tuple(differing(conditions(before.run), conditions(after.run))),
    )


def causes(items: Sequence[tuple[str, str]]) -> str:
    """Causes of flips as text, such as "3 wrong, 1 loop"."""
    return ", ".join(f"{count} {cause}" for cause, count in Counter(c for _, c in items).most_common())
