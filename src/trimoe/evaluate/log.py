"""The run log: SQLite (WAL), one file for many runs; every sample is durable when it is stored.

Invariants: a run's identity is (bench identity, model fingerprint, generation settings), operational settings are not
in it; a sample is stored once per run; `correct` is NULL when the sample could not be scored.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.artifact import sha256_json
from trimoe.errors import RunLogError

APPLICATION_ID = 0x7472696D  # "trim"
MIGRATIONS: tuple[tuple[str, str], ...] = (
    (
        "0001 runs and samples",
        """
        CREATE TABLE runs (id INTEGER PRIMARY KEY, identity TEXT UNIQUE NOT NULL, bench TEXT NOT NULL,
            bench_identity TEXT NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL, settings TEXT NOT NULL,
            expected INTEGER NOT NULL);
        CREATE TABLE samples (run INTEGER NOT NULL REFERENCES runs(id), doc_id TEXT NOT NULL, prompt TEXT NOT NULL,
            reply TEXT NOT NULL, extracted TEXT, correct INTEGER, cause TEXT NOT NULL, finish_reason TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, scorer INTEGER NOT NULL,
            PRIMARY KEY (run, doc_id)) WITHOUT ROWID;
        """,
    ),
)


@dataclass(frozen=True)
class Row:
    """One stored sample."""

    doc_id: str
    prompt: str
    reply: str
    extracted: str | None
    correct: bool | None
    cause: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    scorer: int


@dataclass(frozen=True)
class Run:
    """One run: a bench on a model. `expected` is the number of samples of the complete run."""

    id: int
    bench: str
    bench_identity: str
    model: str
    name: str
    expected: int


class RunLog:
    """An open log file."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate(path)
        except sqlite3.DatabaseError as exc:
            raise RunLogError(
                f"{path} is not a run log",
                expected="a file made by `trimoe eval --log`",
                actual=str(exc),
                remedy="choose another --log",
            ) from exc

    def _migrate(self, path: Path) -> None:
        kind = self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if kind != APPLICATION_ID and tables:
            raise RunLogError(
                f"{path} is a database of another program", expected="a run log", remedy="choose another --log"
            )
        with self._transaction():
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")
            done = {name for (name,) in self._db.execute("SELECT name FROM migrations")}
            if unknown := done - {name for name, _ in MIGRATIONS}:
                raise RunLogError(f"{path} was made by a newer trimoe", actual=min(unknown), remedy="upgrade trimoe")
            for name, script in MIGRATIONS:
                if name not in done:
                    for statement in filter(str.strip, script.split(";")):
                        self._db.execute(statement)
                    self._db.execute("INSERT INTO migrations VALUES (?)", (name,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def open_run(
        self, bench: str, bench_identity: str, model: str, name: str, settings: dict[str, Any], expected: int
    ) -> Run:
        """The run with this identity, new or resumed; the name may change, the identity may not."""
        identity = sha256_json([bench_identity, model, settings])
        with self._transaction():
            self._db.execute(
                "INSERT INTO runs (identity, bench, bench_identity, model, name, settings, expected)"
                " VALUES (?,?,?,?,?,?,?)"
                " ON CONFLICT (identity) DO UPDATE SET name = excluded.name",
                (identity, bench, bench_identity, model, name, json.dumps(settings, sort_keys=True), expected),
            )
        return next(r for r in self.runs() if r.id == self._id(identity))

    def _id(self, identity: str) -> int:
        return int(self._db.execute("SELECT id FROM runs WHERE identity = ?", (identity,)).fetchone()[0])

    def runs(self) -> list[Run]:
        """All runs in the order they were begun."""
        query = "SELECT id, bench, bench_identity, model, name, expected FROM runs ORDER BY id"
        return [Run(*row) for row in self._db.execute(query)]

    def store(self, run: Run, rows: list[Row]) -> None:
        """Add samples in one transaction; harness errors of an earlier attempt are replaced, scored ones never."""
        with self._transaction():
            for r in rows:
                self._db.execute("DELETE FROM samples WHERE run=? AND doc_id=? AND correct IS NULL", (run.id, r.doc_id))
                self._db.execute(
                    "INSERT INTO samples VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        run.id,
                        r.doc_id,
                        r.prompt,
                        r.reply,
                        r.extracted,
                        r.correct,
                        r.cause,
                        r.finish_reason,
                        r.prompt_tokens,
                        r.completion_tokens,
                        r.scorer,
                    ),
                )

    def samples(self, run: Run) -> list[Row]:
        """Stored samples of a run, by doc_id."""
        query = (
            "SELECT doc_id, prompt, reply, extracted, correct, cause, finish_reason, prompt_tokens, completion_tokens,"
            " scorer FROM samples WHERE run = ? ORDER BY doc_id"
        )
        return [Row(*r[:4], None if r[4] is None else bool(r[4]), *r[5:]) for r in self._db.execute(query, (run.id,))]
