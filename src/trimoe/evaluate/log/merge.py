"""Merges several run logs into a new one.

Invariants: runs of the same identity become one run with the samples of all. Logs with different replies or verdicts
for the same sample, or one name for two runs, are refused with the evidence, because nothing tells which one is right.
The sources are not changed; the result appears whole or not at all.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trimoe.errors import RunLogError, UsageError
from trimoe.evaluate.log.chain import adopted, broken
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.schema import open_log, transaction
from trimoe.io.atomic import publish_file

_FEW = 5  # conflicts named in a message

_SAME_RUN = "src.runs o JOIN main.runs r ON r.identity = o.identity"
_CONFLICTS = (
    (
        "another reply",
        f"""SELECT r.bench || ' ' || a.doc_id || ': ' || quote(substr(a.reply, 1, 60)) || ' and '
            || quote(substr(b.reply, 1, 60))
            FROM {_SAME_RUN} JOIN main.samples a ON a.run_id = r.id
            JOIN src.samples b ON b.run_id = o.id AND b.doc_id = a.doc_id
            WHERE (a.reply, a.reasoning, a.finish_reason, a.prompt) IS NOT
                  (b.reply, b.reasoning, b.finish_reason, b.prompt)""",
    ),
    (
        "another verdict",
        f"""SELECT r.bench || ' ' || a.doc_id || ' by scorer ' || a.scorer || ': ' || a.cause || ' and ' || b.cause
            FROM {_SAME_RUN} JOIN main.scores a ON a.run_id = r.id
            JOIN src.scores b ON b.run_id = o.id AND b.doc_id = a.doc_id AND b.scorer = a.scorer
            WHERE a.correct IS NOT b.correct AND a.correct IS NOT NULL AND b.correct IS NOT NULL""",
    ),
    (
        "another verdict by another scorer; rescore both logs with one version",
        f"""SELECT r.bench || ' ' || a.doc_id || ': ' || a.cause || ' and ' || b.cause
            FROM {_SAME_RUN} JOIN main.scores a ON a.run_id = r.id
            JOIN src.scores b ON b.run_id = o.id AND b.doc_id = a.doc_id AND b.scorer != a.scorer
            WHERE a.correct != b.correct
            AND a.rowid = (SELECT max(rowid) FROM main.scores n WHERE n.run_id = a.run_id AND n.doc_id = a.doc_id)
            AND b.rowid = (SELECT max(rowid) FROM src.scores n WHERE n.run_id = b.run_id AND n.doc_id = b.doc_id)""",
    ),
    (
        "one name for two runs",
        """SELECT n.name || ' on ' || n.bench FROM src.names n JOIN src.runs o ON o.id = n.run_id
            JOIN main.names m ON m.name = n.name AND m.bench = n.bench JOIN main.runs r ON r.id = m.run_id
            WHERE r.identity != o.identity""",
    ),
)
_COPY = (
    """INSERT OR IGNORE INTO main.runs (identity, bench, spec_hash, spec, model, sampler, settings, created)
        SELECT identity, bench, spec_hash, spec, model, sampler, settings, created FROM src.runs ORDER BY id""",
    f"""INSERT OR IGNORE INTO main.names SELECT n.name, n.bench, r.id FROM {_SAME_RUN}
        JOIN src.names n ON n.run_id = o.id ORDER BY n.rowid""",
    # Of two equal samples the first is kept, together with its attempts.
    f"""INSERT INTO main.attempts SELECT r.id, a.doc_id, a.started, a.seconds, a.outcome, a.status, a.detail
        FROM {_SAME_RUN} JOIN src.attempts a ON a.run_id = o.id
        WHERE NOT EXISTS (SELECT 1 FROM main.attempts t WHERE t.run_id = r.id AND t.doc_id = a.doc_id
                          AND t.started = a.started AND t.seconds = a.seconds) ORDER BY a.rowid""",
    f"""INSERT OR IGNORE INTO main.samples (run_id, doc_id, position, prompt, reply, finish_reason, prompt_tokens,
            reply_tokens, created, reasoning, reasoning_field, fallback, reasoning_tokens, marks, seconds, raw)
        SELECT r.id, s.doc_id, s.position, s.prompt, s.reply, s.finish_reason, s.prompt_tokens, s.reply_tokens,
            s.created, s.reasoning, s.reasoning_field, s.fallback, s.reasoning_tokens, s.marks, s.seconds, s.raw
        FROM {_SAME_RUN} JOIN src.samples s ON s.run_id = o.id ORDER BY s.rowid""",
    # A verdict replaces an unscored row.
    f"""INSERT INTO main.scores SELECT r.id, s.doc_id, s.scorer, s.extracted, s.correct, s.cause, s.detail
        FROM {_SAME_RUN} JOIN src.scores s ON s.run_id = o.id WHERE true ORDER BY s.rowid
        ON CONFLICT DO UPDATE SET extracted = excluded.extracted, correct = excluded.correct, cause = excluded.cause,
            detail = excluded.detail WHERE scores.correct IS NULL""",
    f"""INSERT OR IGNORE INTO main.failures SELECT r.id, f.doc_id, f.position, f.prompt, f.kind, f.detail, f.raw,
            f.created FROM {_SAME_RUN} JOIN src.failures f ON f.run_id = o.id""",
    """DELETE FROM main.failures WHERE EXISTS (SELECT 1 FROM main.samples s WHERE s.run_id = failures.run_id
            AND s.doc_id = failures.doc_id)""",
    f"""INSERT INTO main.events (run_id, created, kind, detail) SELECT r.id, e.created, e.kind, e.detail
        FROM {_SAME_RUN} JOIN src.events e ON e.run_id = o.id
        WHERE NOT EXISTS (SELECT 1 FROM main.events t WHERE t.run_id = r.id AND t.created = e.created
                          AND t.kind = e.kind AND t.detail = e.detail) ORDER BY e.id""",
    # A result that counts failed rows may be outdated: the next eval or rescore makes a new one.
    f"""INSERT OR IGNORE INTO main.results SELECT r.id, x.asked, x.scorer, x.correct, x.scored, x.errors, x.score,
            x.standard_error, x.causes, x.ceilings, x.marks, x.created
        FROM {_SAME_RUN} JOIN src.results x ON x.run_id = o.id WHERE x.errors = 0""",
)


@dataclass(frozen=True)
class Merged:
    """What the new log holds."""

    runs: int
    samples: int


def merge_logs(sources: Sequence[Path], out: Path) -> Merged:
    """Write `out` from the sources, in their order. `RunLogError` lists what contradicts itself."""
    if len(sources) < 2:
        raise UsageError(
            "a merge needs two or more logs",
            expected="two or more",
            actual=f"{len(sources)}",
            remedy="give all logs before -o",
        )
    for source in sources:
        RunLog(source, create=False).close()  # refuses other files and migrates old logs
    with publish_file(out) as temporary:
        db = open_log(temporary)
        try:
            for source in sources:
                _take_in(db, source)
                with RunLog(source, create=False) as log:
                    _require_sound(source, log)
            with transaction(db):
                adopted(db, f"merged from {len(sources)} logs, whose own chains were sound or missing")
            (runs,), (samples,) = (
                db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("runs", "samples")
            )
            db.execute("PRAGMA journal_mode = DELETE")  # a single file, without a -wal file, is renamed
        finally:
            db.close()
    return Merged(runs, samples)


def _require_sound(source: Path, log: RunLog) -> None:
    """Refuse a log with a broken hash chain: in the merged log its edits could not be found."""
    faults, _ = broken(log.db, {run.run_id: run.name for run in log.runs()})
    if faults:
        raise RunLogError(
            f"{source} was edited",
            expected="a log whose rows agree with its hash chain",
            actual="; ".join(faults[:_FEW]) + (f" and {len(faults) - _FEW} more" if len(faults) > _FEW else ""),
            remedy="leave it out; `trimoe log verify` lists every fault",
        )


def _take_in(db: sqlite3.Connection, source: Path) -> None:
    db.execute("ATTACH DATABASE ? AS src", (str(source),))
    try:
        for what, query in _CONFLICTS:
            if found := [text for (text,) in db.execute(query)]:
                raise RunLogError(
                    f"{source} contradicts an earlier log: {what}",
                    expected="equal replies and verdicts for the same sample of the same run",
                    actual="; ".join(found[:_FEW]) + (f" and {len(found) - _FEW} more" if len(found) > _FEW else ""),
                    remedy="leave one of the logs out, or evaluate again into a new log",
                )
        with transaction(db):
            for statement in _COPY:
                db.execute(statement)
    finally:
        db.execute("DETACH DATABASE src")
