"""Counts over a run's replies: lengths, empty replies, code fences, loops, markers, scripts, duplicates. Pure.

Invariants: every count comes with the ids of its items. Not guaranteed: that a counted reply is faulty; the audit
decides.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trimoe.bench.bench import NOTE, Doc
from trimoe.bench.cause import Ceilings, loops
from trimoe.bench.fences import blocks, fence_of
from trimoe.evaluate.log.records import Run, Scored
from trimoe.evaluate.log.summary import run_ceilings
from trimoe.evaluate.markers import form_of, found, has_shape, shape
from trimoe.judge.audit.rules import Texts, Thresholds

CUT = ("truncated", "truncated (cap)", "truncated (slot)", "truncated (budget)")


@dataclass(frozen=True)
class Measures:
    """Measures of the samples of one run, in their order. `chars` are p10, p50 and p90 of reply lengths (linear).

    `failures` has (doc_id, cause, detail) of every scored miss; `split` counts them as empty, loop, cut or normal.
    `stated` are samples whose final statement disagrees with the verdict; `marker_names` are what the replies in
    `markers` contain. `verbatim` is None where the data set's own solutions are not available; `finished` says whether
    the log has finish reasons.
    """

    n: int
    scored: int
    correct: int
    empty: tuple[str, ...]
    short_failures: tuple[str, ...]
    fenced: int
    chars: tuple[float, float, float]
    saturated: tuple[str, ...]
    loops: tuple[str, ...]
    length_stops: tuple[str, ...]
    markers: tuple[str, ...]
    marker_names: tuple[str, ...]
    foreign: tuple[str, ...]
    duplicates: tuple[str, ...]
    unscored: tuple[str, ...]
    stated: tuple[str, ...]
    failures: tuple[tuple[str, str, str], ...]
    split: Mapping[str, int]
    ceilings: Ceilings | None
    verbatim: tuple[str, ...] | None
    finished: bool


def measure(
    run: Run, samples: Sequence[Scored], limits: Thresholds, texts: Texts, docs: Mapping[str, Doc] | None = None
) -> Measures:
    """Measure a run. `docs` are the bench's items, for the check against the data set's own solutions."""
    # a sample without a reply because of a harness error is unscored, not empty
    replies = [
        (s.sample.doc_id, s.sample.reply) for s in samples if s.verdict.correct is not None or s.sample.reply.strip()
    ]
    # right without content: the answer was found in the reasoning
    right = {s.sample.doc_id for s in samples if s.verdict.correct}
    misses = [s for s in samples if s.verdict.correct is False]
    lengths = np.array([len(reply) for _, reply in replies] or [0])
    marked, marker_names = leaked(samples)
    p10, p50, p90 = (float(q) for q in np.percentile(lengths, [10, 50, 90]))
    return Measures(
        n=len(samples),
        scored=sum(s.verdict.correct is not None for s in samples),
        correct=sum(s.verdict.correct is True for s in samples),
        empty=tuple(i for i, reply in replies if not reply.strip() and i not in right),
        short_failures=tuple(s.sample.doc_id for s in misses if len(s.sample.reply.strip()) < limits.short_chars),
        fenced=sum(bool(blocks(reply)) for _, reply in replies),
        chars=(p10, p50, p90),
        saturated=tuple(i for i, reply in replies if len(reply) > limits.saturated_chars),
        loops=tuple(s.sample.doc_id for s in samples if looped(s)),
        length_stops=tuple(s.sample.doc_id for s in samples if s.sample.finish_reason == "length"),
        markers=marked,
        marker_names=marker_names,
        foreign=tuple(
            s.sample.doc_id
            for s in samples
            if foreign_share(s.sample.reply, s.sample.prompt, texts.scripts) > limits.foreign_letters
        ),
        duplicates=duplicated(samples, limits.duplicate_chars),
        unscored=tuple(s.sample.doc_id for s in samples if s.verdict.correct is None),
        stated=tuple(s.sample.doc_id for s in samples if NOTE in s.verdict.detail),
        failures=tuple((s.sample.doc_id, s.verdict.cause, s.verdict.detail) for s in misses),
        split=split_failures(misses),
        ceilings=run_ceilings(run, samples),
        verbatim=None if docs is None else _verbatim(replies, docs),
        finished=any(s.sample.finish_reason for s in samples),
    )


def split_failures(misses: Sequence[Scored]) -> dict[str, int]:
    """Misses by kind: empty, loop, cut, or a normal reply that was wrong."""
    out = {"empty": 0, "loop": 0, "cut": 0, "normal": 0}
    for miss in misses:
        cause = miss.verdict.cause
        kind = "empty" if cause in ("empty", "reasoning-only") else "loop" if cause == "loop" else ""
        out[kind or ("cut" if cause in CUT else "normal")] += 1
    return out


def looped(s: Scored) -> bool:
    """Whether a reply loops, in its content or in its separate reasoning."""
    return s.verdict.cause == "loop" or loops(s.sample.reply) or loops(s.sample.reasoning)


def leaked(samples: Sequence[Scored]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of replies with control text of a chat template or a thought in their content, and what was found."""
    names = {s.sample.doc_id: found(s.sample.reply, s.sample.prompt, turns=True) for s in samples}
    with_text = [s.sample for s in samples if s.sample.reply.strip()]
    forms = [form_of(one.reply, one.prompt) for one in with_text]
    if (common := shape(forms)) is not None:
        for one, form in zip(with_text, forms, strict=True):
            if has_shape(form, common) and not names[one.doc_id]:
                names[one.doc_id].append(common.text)
    hits = tuple(doc_id for doc_id, some in names.items() if some)
    return hits, tuple(dict.fromkeys(name for some in names.values() for name in some))


def foreign_share(reply: str, prompt: str, scripts: Sequence[str]) -> float:
    """Share of the reply's letters that are in one of `scripts` and in no script of the prompt."""
    if reply.isascii():
        return 0.0
    known = {script for c in prompt if not c.isascii() and (script := script_of(c)) in scripts}
    letters = [c for c in reply if c.isalpha()]
    strange = sum(not c.isascii() and (s := script_of(c)) in scripts and s not in known for c in letters)
    return strange / len(letters) if letters else 0.0


def script_of(c: str) -> str:
    """First word of a character's Unicode name; empty if it has none."""
    return unicodedata.name(c, "").partition(" ")[0].partition("-")[0]


def duplicated(samples: Sequence[Scored], shortest: int) -> tuple[str, ...]:
    """Ids of samples whose reply, of at least `shortest` characters, equals the reply to another prompt."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for s in samples:
        if len(text := s.sample.reply.strip()) >= shortest:
            groups[text].append(s)
    same = [g for g in groups.values() if len({s.sample.prompt for s in g}) > 1]
    found = {s.sample.doc_id for g in same for s in g}
    return tuple(s.sample.doc_id for s in samples if s.sample.doc_id in found)


def _verbatim(replies: Sequence[tuple[str, str]], docs: Mapping[str, Doc]) -> tuple[str, ...]:
    return tuple(i for i, reply in replies if (doc := docs.get(i)) and (body := solution(doc)) and body in reply)


def solution(doc: Doc) -> str:
    """The data set's own solution without fence and prompt, as it would appear in a reply."""
    lines = doc.reference.strip().split("\n")
    if fence_of(lines[0]):
        lines = lines[1:-1] if fence_of(lines[-1]) else lines[1:]
    code = "\n".join(lines)
    return code.removeprefix(str(doc.check.get("prompt", ""))).strip()
