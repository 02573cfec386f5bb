"""Tables of the run log and the named migrations that create them.

Invariants: a migration is applied completely or not at all, and never twice. A released migration never changes; the
schema grows by appending one. Logs of a newer trimoe and files of other programs are refused and not modified.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from trimoe.errors import RunLogError, TrimoeError
from trimoe.evaluate.log.chain import adopted
from trimoe.evaluate.log.connection import LogConnection, connected

CHAIN = "hash chain"  # name of a migration
_APPLICATION_ID = 0x74726D6F  # "trmo" marks a run log among SQLite files

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "first",
        (
            """CREATE TABLE runs (
                id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, bench TEXT NOT NULL, spec_hash TEXT NOT NULL,
                spec TEXT NOT NULL, model TEXT NOT NULL, sampler TEXT NOT NULL, settings TEXT NOT NULL,
                created TEXT NOT NULL)""",
            """CREATE TABLE names (
                name TEXT NOT NULL, bench TEXT NOT NULL, run_id INTEGER NOT NULL REFERENCES runs(id),
                PRIMARY KEY (name, bench))""",
            """CREATE TABLE samples (
                run_id INTEGER NOT NULL REFERENCES runs(id), doc_id TEXT NOT NULL, position INTEGER NOT NULL,
                prompt TEXT NOT NULL, reply TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
                reply_tokens INTEGER NOT NULL, created TEXT NOT NULL, PRIMARY KEY (run_id, doc_id))""",
            """CREATE TABLE scores (
                run_id INTEGER NOT NULL, doc_id TEXT NOT NULL, scorer INTEGER NOT NULL, extracted TEXT,
                correct INTEGER CHECK (correct IN (0, 1)), cause TEXT NOT NULL, detail TEXT NOT NULL,
                PRIMARY KEY (run_id, doc_id, scorer),
                FOREIGN KEY (run_id, doc_id) REFERENCES samples(run_id, doc_id))""",
            """CREATE TABLE events (
                id INTEGER PRIMARY KEY, run_id INTEGER REFERENCES runs(id), created TEXT NOT NULL, kind TEXT NOT NULL,
                detail TEXT NOT NULL)""",
        ),
    ),
    (
        "replies of servers",
        (
            "ALTER TABLE samples ADD COLUMN reasoning TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE samples ADD COLUMN reasoning_field TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE samples ADD COLUMN fallback INTEGER NOT NULL DEFAULT 0 CHECK (fallback IN (0, 1))",
            "ALTER TABLE samples ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT -1",
            "ALTER TABLE samples ADD COLUMN marks TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE samples ADD COLUMN seconds REAL",
            "ALTER TABLE samples ADD COLUMN raw BLOB",  # JSON as text, or deflated
            """CREATE TABLE attempts (
                run_id INTEGER NOT NULL REFERENCES runs(id), doc_id TEXT NOT NULL, started TEXT NOT NULL,
                seconds REAL NOT NULL, outcome TEXT NOT NULL, status INTEGER, detail TEXT NOT NULL)""",
            "CREATE INDEX attempts_of ON attempts (run_id, doc_id)",
            """CREATE TABLE failures (
                run_id INTEGER NOT NULL REFERENCES runs(id), doc_id TEXT NOT NULL, position INTEGER NOT NULL,
                prompt TEXT NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL, raw BLOB, created TEXT NOT NULL,
                PRIMARY KEY (run_id, doc_id))""",
            """CREATE TABLE results (
                run_id INTEGER NOT NULL REFERENCES runs(id), asked INTEGER NOT NULL, scorer INTEGER NOT NULL,
                correct INTEGER NOT NULL, scored INTEGER NOT NULL, errors INTEGER NOT NULL, score REAL,
                standard_error REAL, causes TEXT NOT NULL, ceilings TEXT, marks TEXT NOT NULL, created TEXT NOT NULL,
                PRIMARY KEY (run_id, asked, scorer))""",
        ),
    ),
    (
        CHAIN,
        (
            "ALTER TABLE runs ADD COLUMN head TEXT",  # last hash of the run's entries
            """CREATE TABLE chain (
                seq INTEGER PRIMARY KEY, run_id INTEGER, tbl TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
                hash TEXT NOT NULL)""",
        ),
    ),
)


def open_log(path: Path) -> LogConnection:
    """A connection to a log, migrated to the newest schema. `RunLogError` for a file that is not a run log."""
    db = connected(path, path)
    try:
        _require_run_log(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a stored reply survives a power failure
        db.execute("PRAGMA foreign_keys = ON")
        _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def open_readonly(path: Path) -> LogConnection:
    """A read-only connection, usable while an evaluation writes the log. An older schema is not migrated.

    `RunLogError` for a file that is missing, empty, not a run log, or written by a newer trimoe.
    """
    if not path.is_file():
        raise RunLogError(
            f"run log {path} not found", expected="a file written by `trimoe eval --log`", remedy="check the path"
        )
    db = _connect_readonly(path)
    try:
        _require_run_log(db, path)
        if not _applied(db):
            raise RunLogError(
                f"{path} is empty",
                expected="a run log",
                actual="an SQLite file without tables",
                remedy="run `trimoe eval MODEL --log ...` first",
            )
    except BaseException:
        db.close()
        raise
    return db


def is_run_log(db: sqlite3.Connection) -> bool:
    """Whether the file has the mark of a run log."""
    return bool(db.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID)


def is_current(db: sqlite3.Connection) -> bool:
    """Whether a log has the newest schema, so that `RunLog` can read it without migrating it first."""
    return _applied(db) == {name for name, _ in MIGRATIONS}


def _connect_readonly(path: Path) -> LogConnection:
    address = f"file:{quote(str(path.resolve()))}?mode=ro"
    db = connected(address, path, uri=True, timeout=5)
    try:
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except TrimoeError as exc:
        db.close()
        beside = path.with_name(path.name + "-wal")
        if isinstance(exc, RunLogError) or (beside.exists() and beside.stat().st_size):
            raise
        # A log in WAL mode in a read-only folder: nobody can be writing it, so it is read without locks.
        db = connected(address + "&immutable=1", path, uri=True)
    return db


def _require_run_log(db: sqlite3.Connection, path: Path) -> None:
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if tables and application != _APPLICATION_ID:
        raise RunLogError(
            f"{path} is not a run log",
            expected="an SQLite file written by trimoe",
            actual=f"tables {', '.join(sorted(tables)[:5])}",
            remedy="choose another --log",
        )
    if tables:
        unknown = {name for (name,) in db.execute("SELECT name FROM migrations")} - {name for name, _ in MIGRATIONS}
        if unknown:
            raise RunLogError(
                f"{path} was written by a newer trimoe",
                expected="schema known to this version",
                actual=f"migration {', '.join(sorted(unknown))}",
                remedy="upgrade trimoe",
            )


def _migrate(db: sqlite3.Connection) -> None:
    if is_current(db):
        return  # opening a current log writes nothing
    with transaction(db):
        db.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied TEXT NOT NULL)")
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    applied = _applied(db)
    for name, statements in MIGRATIONS:
        if name not in applied:
            with transaction(db):
                if db.execute("SELECT 1 FROM migrations WHERE name = ?", (name,)).fetchone():
                    continue  # another process has applied it
                for statement in statements:
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (name, now()))
                if name == CHAIN and db.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                    adopted(db, f"an earlier version of trimoe wrote them, until {now()}")


def _applied(db: sqlite3.Connection) -> set[str]:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'").fetchone():
        return set()
    return {name for (name,) in db.execute("SELECT name FROM migrations")}


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. The write lock is taken at once, so two writers wait for each other."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back on some errors, such as a full disk
            db.execute("ROLLBACK")
        raise


def now() -> str:
    """The current time: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
