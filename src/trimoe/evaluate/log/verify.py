"""Verification of a run log: the SQLite file, the hash chain, the hashes of its runs, and every derived number.

Invariants: nothing is written. Damage in one part is a fault and does not hide the others. Numbers that follow from
other rows (scores, counts, identities, causes) are computed again from these rows.
"""

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trimoe.errors import RunLogError
from trimoe.evaluate.log.chain import broken
from trimoe.evaluate.log.reader import LogReader, unpacked
from trimoe.evaluate.log.records import UNCOUNTED, Result, Run, Scored, identity_of
from trimoe.evaluate.log.score import score_of
from trimoe.io.canonical import canonical_json, sha256_bytes


@dataclass(frozen=True)
class Verification:
    """What was found: `faults` contradict the log, `notes` say what cannot be checked."""

    faults: list[str]
    notes: list[str]
    runs: int = 0


def verified(log: LogReader) -> Verification:
    """Faults of the file, of its hash chain, or in its contents."""
    faults, notes = _caught(lambda: _file_faults(log)), []
    runs: list[Run] = []

    def read() -> list[str]:
        runs.extend(log.runs())
        return []

    faults += _caught(read)
    names = {run.run_id: f"{run.name} on {run.bench}" for run in runs}

    def chain() -> list[str]:
        found, note = broken(log.db, names)
        notes.extend([note] if note else [])
        return found

    faults += _caught(chain)
    for run in {run.run_id: run for run in runs}.values():

        def one(run: Run = run) -> list[str]:
            return [f"run {run.name} on {run.bench}: {fault}" for fault in _faults(log, run)]

        faults += _caught(one)
    faults += _caught(lambda: _unnamed(log))
    return Verification(list(dict.fromkeys(faults)), notes, len(runs))


def _caught(find: Callable[[], list[str]]) -> list[str]:
    """The faults that `find` returns; an error while it reads is one, too."""
    try:
        return find()
    except RunLogError as exc:
        return [f"{exc.subject}: {exc.actual}; {exc.remedy}"]


def _file_faults(log: LogReader) -> list[str]:
    faults = [text for (text,) in log.db.execute("PRAGMA integrity_check") if text != "ok"]
    if faults:
        faults.append(f"`trimoe log recover {log.path} -o NEW.db` writes what can still be read into a new log")
    return faults + [
        f"{row['table']} row {row['rowid']} refers to nothing" for row in log.db.execute("PRAGMA foreign_key_check")
    ]


def _unnamed(log: LogReader) -> list[str]:
    """Runs without a name, which no table shows, and names of another bench than their run's."""
    faults = [
        f"run {run_id} on {bench} has no name, so no table shows it"
        for run_id, bench in log.db.execute("SELECT id, bench FROM runs WHERE id NOT IN (SELECT run_id FROM names)")
    ]
    return faults + [
        f"the name {name} says bench {said}, and its run is on {bench}"
        for name, said, bench in log.db.execute(
            "SELECT n.name, n.bench, r.bench FROM names n JOIN runs r ON r.id = n.run_id WHERE n.bench != r.bench"
        )
    ]


def _faults(log: LogReader, run: Run) -> Iterator[str]:
    if sha256_bytes(canonical_json(run.spec)) != run.spec_hash:
        yield "the stored bench spec does not have the stored hash"
    if identity_of(run.spec_hash, run.model, run.sampler) != run.identity:
        yield "model and sampler do not have the stored identity"
    if run.spec.get("name", run.bench) not in (run.bench, run.bench.partition(":")[0]):
        yield f"the stored bench spec is of {run.spec['name']}"
    samples = log.samples(run)
    for scored in samples:
        yield from _sample_faults(scored)
    for (doc_id,) in log.db.execute(
        "SELECT f.doc_id FROM failures f JOIN samples s USING (run_id, doc_id) WHERE run_id = ?", (run.run_id,)
    ):
        yield f"{doc_id} has a reply and an open failure"
    yield from _result_faults(log, run, samples)
    if not any(kind == "recovered" for kind, _ in log.events(run)):
        yield from _attempt_faults(log, run, samples)
    for doc_id, packed in log.db.execute(
        "SELECT doc_id, raw FROM samples WHERE run_id = ? AND raw IS NOT NULL", (run.run_id,)
    ):
        try:
            json.loads(unpacked(packed))
        except (ValueError, zlib.error, TypeError, AttributeError):
            yield f"the raw reply of {doc_id} is damaged"


def _sample_faults(scored: Scored) -> Iterator[str]:
    s, v = scored.sample, scored.verdict
    if (v.correct is True) != (v.cause == "correct"):
        yield f"{s.doc_id} says correct={v.correct}, cause {v.cause}"
    if s.fallback and s.reply.strip():
        yield f"{s.doc_id} was read from its reasoning, but has content"
    if s.fallback and not s.reasoning.strip():
        yield f"{s.doc_id} was read from its reasoning, and has none"
    if s.reasoning and s.reasoning_tokens > s.reply_tokens != UNCOUNTED:
        yield f"{s.doc_id} has {s.reasoning_tokens} tokens of reasoning in a reply of {s.reply_tokens}"


def _attempt_faults(log: LogReader, run: Run, samples: Sequence[Scored]) -> Iterator[str]:
    """Replies that a server gave and that are not stored."""
    attempts = log.attempts(run)
    replied = {doc_id for doc_id, attempt in attempts if attempt.outcome == "reply"}
    for doc_id in sorted(replied - {s.sample.doc_id for s in samples}):
        yield f"{doc_id} got a reply that is not stored"


def _result_faults(log: LogReader, run: Run, samples: Sequence[Scored]) -> Iterator[str]:
    """Results whose numbers contradict each other or the verdicts of their scorer.

    Imports have no bench order to recount by.
    """
    newest = log.db.execute(
        "SELECT scorer FROM scores WHERE run_id = ? ORDER BY rowid DESC LIMIT 1", (run.run_id,)
    ).fetchone()
    for result in log.results(run):
        yield from _own_faults(result)
        if "imported" in run.spec or newest is None or result.scorer != newest["scorer"]:
            continue
        within = [s for s in samples if s.sample.position < result.asked]
        yield from _recounted(run, result, within)


def _own_faults(result: Result) -> Iterator[str]:
    where = f"the stored result over {result.asked} rows"
    if not 0 <= result.correct <= result.scored <= result.asked:
        yield f"{where} says {result.correct} of {result.scored} scored rows"
    if result.score is not None and not 0 <= result.score <= 1:
        yield f"{where} says a score of {result.score}"
    right = result.causes.get("correct", 0)
    if result.causes and right != result.correct:
        yield f"{where} counts {right} correct replies by cause and {result.correct} by verdict"


def _recounted(run: Run, result: Result, samples: Sequence[Scored]) -> Iterator[str]:
    where, mend = f"the stored result over {result.asked} rows says", "run trimoe rescore"
    verdicts = [s.verdict.correct for s in samples]
    correct, scored = sum(v is True for v in verdicts), sum(v is not None for v in verdicts)
    if (correct, scored) != (result.correct, result.scored):
        yield f"{where} {result.correct} of {result.scored} correct, the verdicts say {correct} of {scored}: {mend}"
        return
    left_out = result.score is not None and scored < len(verdicts)
    score, error, _ = score_of(run, samples, exclude_errors=left_out)
    for what, stored, made in (("a score", result.score, score), ("a standard error", result.standard_error, error)):
        if (stored is None) != (made is None) or not math.isclose(stored or 0, made or 0, abs_tol=1e-9):
            yield f"{where} {what} of {stored}, the verdicts say {made}: {mend}"
    causes = dict(Counter[str](s.verdict.cause for s in samples))
    if causes != result.causes:
        yield f"{where} causes {_counts(result.causes)}, the verdicts say {_counts(causes)}: {mend}"


def _counts(causes: dict[str, int]) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items())) or "none"
