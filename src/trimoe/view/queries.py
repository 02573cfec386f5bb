"""Read-only queries of the viewer, one run at a time.

Invariants: the verdict of a sample is the one stored last; rows without a reply (failures) are listed among the
samples, unscored. Texts are read only for the rows that a page shows, and for searches.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimoe.bench.bench import NOTE, Verdict
from trimoe.evaluate.log.reader import unpacked
from trimoe.evaluate.log.records import UNCOUNTED, Attempt, Run, Sample, Scored
from trimoe.view.source import Reader

Field = Literal["all", "prompt", "reply", "reasoning"]

SNIPPET = 400  # characters of a reply that a list shows

_VERDICT = """LEFT JOIN scores c ON c.run_id = s.run_id AND c.doc_id = s.doc_id AND c.rowid =
    (SELECT max(rowid) FROM scores n WHERE n.run_id = s.run_id AND n.doc_id = s.doc_id)"""


@dataclass(frozen=True)
class Facts:
    """A run with the settings outside its identity. Times as stored (UTC)."""

    run: Run
    settings: dict[str, Any]
    created: str


@dataclass(frozen=True)
class Event:
    """One event of a run."""

    created: str
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Brief:
    """One line of a list. `tokens` is None if they were not counted."""

    doc_id: str
    reply: str
    extracted: str | None
    detail: str
    finish: str
    tokens: int | None
    seconds: float | None


def runs(r: Reader) -> list[Facts]:
    """Every named run, oldest name first."""
    rows = r.db.execute(
        "SELECT r.id, n.name, r.bench, r.model, r.identity, r.spec_hash, r.spec, r.sampler, r.settings, r.created "
        "FROM runs r JOIN names n ON n.run_id = r.id ORDER BY n.rowid"
    )
    return [
        Facts(Run(number, name, bench, model, identity, hashed, _json(spec), _json(sampler)), _json(settings), created)
        for number, name, bench, model, identity, hashed, spec, sampler, settings, created in rows
    ]


def verdicts(r: Reader, run_id: int) -> list[Scored]:
    """All samples of a run in the bench's order, without their texts."""
    rows = r.db.execute(
        f"SELECT s.doc_id, s.position, c.correct, c.cause FROM samples s {_VERDICT} WHERE s.run_id = ?", (run_id,)
    )
    found = [
        Scored(Sample(doc, position, "", "", "", UNCOUNTED, UNCOUNTED), _verdict(correct, cause))
        for doc, position, correct, cause in rows
    ]
    if r.has("failures"):
        failed = r.db.execute("SELECT doc_id, position, kind FROM failures WHERE run_id = ?", (run_id,))
        found += [
            Scored(Sample(doc, position, "", "", "", UNCOUNTED, UNCOUNTED, error=kind), _verdict(None, None))
            for doc, position, kind in failed
        ]
    return sorted(found, key=lambda s: s.sample.position)


def newest(r: Reader, run_id: int) -> str | None:
    """Time at which the run's last sample was stored."""
    row = r.db.execute(
        "SELECT created FROM samples WHERE rowid = (SELECT max(rowid) FROM samples WHERE run_id = ?)", (run_id,)
    ).fetchone()
    return None if row is None else str(row[0])


def events(r: Reader, run_id: int) -> list[Event]:
    """Events of a run, oldest first."""
    rows = r.db.execute("SELECT created, kind, detail FROM events WHERE run_id = ? ORDER BY id", (run_id,))
    return [Event(created, kind, _json(detail)) for created, kind, detail in rows]


def left_out(r: Reader, run_id: int) -> int:
    """Number of rows that a stored score leaves out; 0 without such a score."""
    if not r.has("results"):
        return 0
    row = r.db.execute("SELECT max(errors) FROM results WHERE run_id = ? AND score IS NOT NULL", (run_id,)).fetchone()
    return int(row[0] or 0)


def stated(r: Reader, run_id: int) -> int:
    """Number of samples that state another final answer than their newest verdict is about."""
    query = f"SELECT count(*) FROM samples s {_VERDICT} WHERE s.run_id = ? AND instr(c.detail, ?)"
    return int(r.db.execute(query, (run_id, NOTE)).fetchone()[0])


def briefs(r: Reader, run_id: int, docs: Sequence[str]) -> dict[str, Brief]:
    """The lines of a list, by id."""
    marks = ", ".join("?" * len(docs))
    rows = r.db.execute(
        f"SELECT s.doc_id, substr(s.reply, 1, {SNIPPET}), c.extracted, c.detail, s.finish_reason, s.reply_tokens, "
        f"{r.sample_columns('seconds')} FROM samples s {_VERDICT} WHERE s.run_id = ? AND s.doc_id IN ({marks})",
        (run_id, *docs),
    )
    found = {
        doc: Brief(doc, reply, extracted, detail or "", finish, None if tokens == UNCOUNTED else tokens, seconds)
        for doc, reply, extracted, detail, finish, tokens, seconds in rows
    }
    if r.has("failures"):
        failed = r.db.execute(
            f"SELECT doc_id, kind, detail FROM failures WHERE run_id = ? AND doc_id IN ({marks})", (run_id, *docs)
        )
        found |= {doc: Brief(doc, "", None, f"{kind}: {detail}", "", None, None) for doc, kind, detail in failed}
    return found


def whole(r: Reader, run_id: int, doc_id: str) -> Scored | None:
    """One sample with all its texts; None if the run has no such row."""
    row = r.db.execute(
        "SELECT s.doc_id, s.position, s.prompt, s.reply, s.finish_reason, s.prompt_tokens, s.reply_tokens, "
        + r.sample_columns("reasoning", "reasoning_field", "fallback", "reasoning_tokens", "marks", "seconds")
        + f", c.correct, c.cause, c.extracted, c.detail FROM samples s {_VERDICT} WHERE s.run_id = ? AND s.doc_id = ?",
        (run_id, doc_id),
    ).fetchone()
    if row is not None:
        marks = tuple(filter(None, row[11].split("\n")))
        sample = Sample(*(*row[:9], bool(row[9]), row[10], marks, "", row[12]))
        return Scored(sample, _verdict(*row[13:]))
    if r.has("failures"):
        failed = r.db.execute(
            "SELECT doc_id, position, prompt, kind, detail FROM failures WHERE run_id = ? AND doc_id = ?",
            (run_id, doc_id),
        ).fetchone()
        if failed is not None:
            doc, position, prompt, kind, detail = failed
            sample = Sample(doc, position, prompt, "", "", UNCOUNTED, UNCOUNTED, error=kind)
            return Scored(sample, _verdict(None, None, None, f"{kind}: {detail}" if detail else kind))
    return None


def attempts(r: Reader, run_id: int, doc_id: str) -> list[Attempt]:
    """Every request for a sample, in stored order."""
    if not r.has("attempts"):
        return []
    rows = r.db.execute(
        "SELECT started, seconds, outcome, status, detail FROM attempts WHERE run_id = ? AND doc_id = ? ORDER BY rowid",
        (run_id, doc_id),
    )
    return [Attempt(*row) for row in rows]


def raw(r: Reader, run_id: int, doc_id: str) -> bytes | None:
    """The raw server reply; None if none was stored. A damaged one is returned as stored."""
    for table in ("samples", "failures"):
        if "raw" in r.columns[table]:
            row = r.db.execute(f"SELECT raw FROM {table} WHERE run_id = ? AND doc_id = ?", (run_id, doc_id)).fetchone()
            if row is not None and row[0] is not None:
                try:
                    return unpacked(row[0])
                except zlib.error:
                    return bytes(row[0])
    return None


def holding(r: Reader, run_id: int, needle: str, field: Field) -> set[str]:
    """Ids of the samples that contain a text; case-insensitive in any script."""
    wanted = needle.casefold()
    names = ("prompt", "reply", "reasoning") if field == "all" else (field,)
    rows = r.db.execute(f"SELECT s.doc_id, {r.sample_columns(*names)} FROM samples s WHERE s.run_id = ?", (run_id,))
    found = {doc for doc, *texts in rows if any(wanted in text.casefold() for text in texts)}
    if r.has("failures") and "prompt" in names:
        failed = r.db.execute("SELECT doc_id, prompt FROM failures WHERE run_id = ?", (run_id,))
        found |= {doc for doc, prompt in failed if wanted in prompt.casefold()}
    return found


def _verdict(correct: int | None, cause: str | None, extracted: str | None = None, detail: str | None = "") -> Verdict:
    shown: Any = cause or "harness error"
    return Verdict(None if correct is None else bool(correct), shown, extracted, detail or "")


def _json(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {"value": found}
