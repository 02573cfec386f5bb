"""Verification of a run log: the SQLite file, the hashes of its runs, and results against verdicts."""

import json
import zlib
from collections.abc import Iterator

from trimoe.evaluate.log.reader import LogReader, unpacked
from trimoe.evaluate.log.records import Run, identity_of
from trimoe.io.canonical import canonical_json, sha256_bytes


def faults_of(log: LogReader) -> list[str]:
    """Faults of the file or contradictions in its contents; empty if it is sound."""
    faults = [text for (text,) in log.db.execute("PRAGMA integrity_check") if text != "ok"]
    faults += [
        f"{row['table']} row {row['rowid']} refers to nothing" for row in log.db.execute("PRAGMA foreign_key_check")
    ]
    for run in {run.run_id: run for run in log.runs()}.values():
        faults += [f"run {run.name} on {run.bench}: {fault}" for fault in _faults(log, run)]
    return faults


def _faults(log: LogReader, run: Run) -> Iterator[str]:
    if sha256_bytes(canonical_json(run.spec)) != run.spec_hash:
        yield "the stored bench spec does not have the stored hash"
    if identity_of(run.spec_hash, run.model, run.sampler) != run.identity:
        yield "model and sampler do not have the stored identity"
    for scored in log.samples(run):
        s, v = scored.sample, scored.verdict
        if (v.correct is True) != (v.cause == "correct"):
            yield f"{s.doc_id} says correct={v.correct}, cause {v.cause}"
        if s.fallback and s.reply.strip():
            yield f"{s.doc_id} was read from its reasoning, but has content"
    for (doc_id,) in log.db.execute(
        "SELECT f.doc_id FROM failures f JOIN samples s USING (run_id, doc_id) WHERE run_id = ?", (run.run_id,)
    ):
        yield f"{doc_id} has a reply and an open failure"
    yield from _wrong_results(log, run)
    for doc_id, packed in log.db.execute(
        "SELECT doc_id, raw FROM samples WHERE run_id = ? AND raw IS NOT NULL", (run.run_id,)
    ):
        try:
            json.loads(unpacked(packed))
        except (ValueError, zlib.error):
            yield f"the raw reply of {doc_id} is damaged"


def _wrong_results(log: LogReader, run: Run) -> Iterator[str]:
    """Results that disagree with the verdicts of their scorer. Imports have no bench order to recount by."""
    if "imported" in run.spec:
        return
    newest = log.db.execute(
        "SELECT scorer FROM scores WHERE run_id = ? ORDER BY rowid DESC LIMIT 1", (run.run_id,)
    ).fetchone()
    for result in log.results(run):
        if newest is None or result.scorer != newest["scorer"]:
            continue
        verdicts = [s.verdict.correct for s in log.samples(run) if s.sample.position < result.asked]
        correct, scored = sum(v is True for v in verdicts), sum(v is not None for v in verdicts)
        if (correct, scored) != (result.correct, result.scored):
            yield (
                f"the stored result over {result.asked} rows says {result.correct} of {result.scored} correct, "
                f"the verdicts say {correct} of {scored}: run trimoe rescore"
            )
