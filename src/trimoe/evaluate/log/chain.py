"""The hash chain of a run log: every row that is written, replaced or removed leaves an entry.

An entry has the digest of the row's content (empty for a removed row) and a hash over that entry and the one before.
The last hash of each run is its `head` in `runs`. `broken` finds rows that were changed, added or deleted otherwise.
Invariants: entries are written in the transaction that writes the row. Rows that are older than the chain (a log from
an earlier version, a merged or recovered log) are entered once, and the first entry says so.
Not guaranteed: a chain shows mistakes and careless edits. Whoever recomputes the whole chain, or replaces the file by
another log, leaves no trace; only a hash kept elsewhere shows that.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from trimoe.io.canonical import canonical_json, sha256_bytes

START = "start"
# Content of each table that the chain covers, and the columns that name a row. Attempts have no key of their own: equal
# ones are counted. `runs.head` belongs to the chain.
COLUMNS: dict[str, tuple[str, ...]] = {
    "runs": ("id", "identity", "bench", "spec_hash", "spec", "model", "sampler", "settings", "created"),
    "names": ("name", "bench", "run_id"),
    "samples": (
        *("run_id", "doc_id", "position", "prompt", "reply", "finish_reason", "prompt_tokens", "reply_tokens"),
        *("created", "reasoning", "reasoning_field", "fallback", "reasoning_tokens", "marks", "seconds", "raw"),
    ),
    "failures": ("run_id", "doc_id", "position", "prompt", "kind", "detail", "raw", "created"),
    "attempts": ("run_id", "doc_id", "started", "seconds", "outcome", "status", "detail"),
    "scores": ("run_id", "doc_id", "scorer", "extracted", "correct", "cause", "detail"),
    "results": (
        *("run_id", "asked", "scorer", "correct", "scored", "errors", "score", "standard_error", "causes", "ceilings"),
        *("marks", "created"),
    ),
    "events": ("id", "run_id", "created", "kind", "detail"),
}
KEYS: dict[str, tuple[str, ...]] = {
    "runs": ("id",),
    "names": ("name", "bench"),
    "samples": ("run_id", "doc_id"),
    "failures": ("run_id", "doc_id"),
    "attempts": (),
    "scores": ("run_id", "doc_id", "scorer"),
    "results": ("run_id", "asked", "scorer"),
    "events": ("id",),
}


def entered(db: sqlite3.Connection, table: str, *key: Any) -> None:
    """Enter the present content of a row that was written or removed; to be called in the same transaction."""
    where = " AND ".join(f"{name} = ?" for name in KEYS[table])
    row = db.execute(f"SELECT {', '.join(COLUMNS[table])} FROM {table} WHERE {where}", key).fetchone()
    values = None if row is None else dict(zip(COLUMNS[table], row, strict=True))
    _append(db, table, _run_of(table, key, values), _key(key), "" if values is None else digest(values))


def entered_last(db: sqlite3.Connection, table: str) -> None:
    """Enter the row that was inserted last, for tables whose rows are named by SQLite (events) or not at all."""
    row = db.execute(f"SELECT {', '.join(COLUMNS[table])} FROM {table} WHERE rowid = last_insert_rowid()").fetchone()
    values = dict(zip(COLUMNS[table], row, strict=True))
    _append(db, table, values["run_id"], _key([values[name] for name in KEYS[table]]), digest(values))


def adopted(db: sqlite3.Connection, why: str) -> None:
    """Enter all rows of a log that has no chain yet; the first entry says why."""
    rows = [(table, values) for table in COLUMNS for values in _rows(db, table)]
    _append(db, START, None, canonical_json({"adopted": len(rows), "why": why}).decode(), "")
    for table, values in rows:
        key = [values[name] for name in KEYS[table]]
        _append(db, table, _run_of(table, key, values), _key(key), digest(values))


def digest(values: Mapping[str, Any]) -> str:
    """The hash of a row's content."""
    return sha256_bytes(canonical_json({name: _plain(value) for name, value in values.items()}))


def _plain(value: Any) -> Any:
    """A value as JSON can hold it. Values that trimoe never writes still have a digest of their own."""
    if isinstance(value, bytes):
        return f"bytes {sha256_bytes(value)}"
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _append(db: sqlite3.Connection, table: str, run_id: int | None, key: str, content: str) -> None:
    last = db.execute("SELECT hash FROM chain ORDER BY seq DESC LIMIT 1").fetchone()
    made = _hash("" if last is None else last[0], run_id, table, key, content)
    db.execute(
        "INSERT INTO chain (run_id, tbl, key, digest, hash) VALUES (?, ?, ?, ?, ?)", (run_id, table, key, content, made)
    )
    if run_id is not None:
        db.execute("UPDATE runs SET head = ? WHERE id = ?", (made, run_id))


def _hash(before: str, run_id: int | None, table: str, key: str, content: str) -> str:
    return sha256_bytes(canonical_json([before, run_id, table, key, content]))


def _key(key: Sequence[Any]) -> str:
    return canonical_json(list(key)).decode()


def _run_of(table: str, key: Sequence[Any], values: Mapping[str, Any] | None) -> int | None:
    if values is not None:
        found = values["id" if table == "runs" else "run_id"]
    else:
        found = key[0] if KEYS[table][0] == "run_id" else None
    return found if isinstance(found, int) else None


def _rows(db: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    for row in db.execute(f"SELECT {', '.join(COLUMNS[table])} FROM {table} ORDER BY rowid"):
        yield dict(zip(COLUMNS[table], row, strict=True))


# ---------------------------------------------------------------- verification


@dataclass
class Chained:
    """What the entries of a chain say: the newest digest of each row, the attempts, and each run's last hash."""

    faults: list[str] = field(default_factory=list)
    newest: dict[tuple[str, str], str] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    heads: dict[int, str] = field(default_factory=dict)
    verdicts: dict[tuple[int, str], int] = field(default_factory=dict)
    """(run, document) -> the scorer whose verdict was entered last."""
    start: dict[str, Any] | None = None
    length: int = 0


def broken(db: sqlite3.Connection, names: Mapping[int, str]) -> tuple[list[str], str]:
    """(contradictions between the chain and the rows, a note on rows older than the chain or "").

    `names` are the runs' names for messages.
    """
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'chain'").fetchone():
        return [], "this log has no hash chain, because an earlier version of trimoe wrote it: edits cannot be found"
    chain = _read(db)
    faults = list(chain.faults)
    found_attempts = Counter[str]()
    for table in COLUMNS:
        present = set()
        for values in _rows(db, table):
            if table == "attempts":
                found_attempts[digest(values)] += 1
                continue
            key = _key([values[name] for name in KEYS[table]])
            present.add(key)
            entry = chain.newest.get((table, key), "")
            if entry != digest(values):
                what = "was changed" if entry else "was added"
                faults.append(f"{_named(table, values, names)} {what} without an entry in the hash chain")
        gone = [key for (kind, key), entry in chain.newest.items() if kind == table and entry and key not in present]
        faults += [f"{table} row {key} was deleted without an entry in the hash chain" for key in gone]
    if missing := (chain.attempts - found_attempts).total():
        faults.append(f"{missing} attempts were deleted or changed without an entry in the hash chain")
    if more := (found_attempts - chain.attempts).total():
        faults.append(f"{more} attempts were added or changed without an entry in the hash chain")
    faults += _heads(db, chain, names)
    faults += _order(db, chain, names)
    return faults, _note(chain)


def newest_digests(db: sqlite3.Connection) -> set[str] | None:
    """Digests that the chain has for rows; None without a chain. Raises errors of SQLite for a damaged one."""
    digests = {row[0] for row in db.execute("SELECT digest FROM chain")}
    return digests or None


def _read(db: sqlite3.Connection) -> Chained:
    chain, before, expected = Chained(), "", 1
    for seq, run_id, table, key, content, made in db.execute(
        "SELECT seq, run_id, tbl, key, digest, hash FROM chain ORDER BY seq"
    ):
        if seq != expected or made != _hash(before, run_id, table, key, content):
            chain.faults.append(f"the hash chain is broken at entry {seq}: an entry was changed, removed or inserted")
            before, expected = made, seq + 1
        else:
            before, expected = made, expected + 1
        chain.length += 1
        if table == START:
            chain.start = _loaded(key, {"adopted": "some", "why": "the first entry cannot be read"})
        elif table == "attempts":
            chain.attempts[content] += 1
        else:
            chain.newest[table, key] = content
            if table == "scores" and content:
                run, doc_id, scorer = _loaded(key, [run_id, "", None])
                chain.verdicts[run, doc_id] = scorer
        if run_id is not None:
            chain.heads[run_id] = made
    return chain


def _loaded(key: str, otherwise: Any) -> Any:
    try:
        found = json.loads(key)
    except ValueError:
        return otherwise
    return found if isinstance(found, type(otherwise)) and len(found) == len(otherwise) else otherwise


def _heads(db: sqlite3.Connection, chain: Chained, names: Mapping[int, str]) -> Iterator[str]:
    if not chain.length and db.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
        yield "the hash chain was deleted: the log has runs and no entries"
    for run_id, head in db.execute("SELECT id, head FROM runs"):
        if chain.length and head != chain.heads.get(run_id):
            yield f"run {names.get(run_id, run_id)}: its head is not the last hash of its chain, so entries are missing"


def _order(db: sqlite3.Connection, chain: Chained, names: Mapping[int, str]) -> Iterator[str]:
    """Documents whose verdict that counts, the one stored last, is not the one entered last."""
    for run_id, doc_id, scorer in db.execute(
        "SELECT run_id, doc_id, scorer FROM scores c WHERE rowid = (SELECT max(rowid) FROM scores n "
        "WHERE n.run_id = c.run_id AND n.doc_id = c.doc_id)"
    ):
        entered_last_by = chain.verdicts.get((run_id, doc_id))
        if entered_last_by is not None and entered_last_by != scorer:
            yield (
                f"run {names.get(run_id, run_id)}: the verdict on {doc_id} that counts is by scorer {scorer}, and "
                f"scorer {entered_last_by} judged it last"
            )


def _note(chain: Chained) -> str:
    if chain.start is None:
        return ""
    return (
        f"{chain.start['adopted']} rows are older than the hash chain ({chain.start['why']}): "
        "edits made to them before that cannot be found"
    )


def _named(table: str, values: Mapping[str, Any], names: Mapping[int, str]) -> str:
    run_id = values["id"] if table == "runs" else values["run_id"]
    run = names.get(run_id, f"number {run_id}")
    row = values.get("doc_id") or values.get("kind") or values.get("name") or ""
    return f"run {run}: the row {f'{row} ' if row else ''}of {table}"
