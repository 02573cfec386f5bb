"""The run log: one SQLite file with every sample ever generated, and every judgement of it.

Invariants: a sample is durable before it is counted; a run is what its identity says (bench spec, model, sampler), so a
second run of the same continues it; scores are rows of their own with the scorer's version; `correct` NULL means not
scored. The schema changes only by named migrations, each in one transaction.
Not guaranteed: two processes writing the same run at once make the same sample twice (the first stays).
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from trimoe.artifact import canonical_json, sha256_bytes
from trimoe.errors import RunLogError
from trimoe.evaluate.bench import Verdict

_APPLICATION_ID = 0x74726D6F  # "trmo": tells our log from any other SQLite file

_MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
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
)

# the newest scorer's verdict of every sample; a sample without one is not scored
_LATEST = """FROM samples s LEFT JOIN scores c ON c.run_id = s.run_id AND c.doc_id = s.doc_id AND c.scorer =
    (SELECT max(scorer) FROM scores n WHERE n.run_id = s.run_id AND n.doc_id = s.doc_id)"""


@dataclass(frozen=True)
class Run:
    """One model on one bench. `name` is the label it was asked for under."""

    run_id: int
    name: str
    bench: str
    model: str
    identity: str
    spec_hash: str
    spec: dict[str, Any]
    sampler: dict[str, Any]


UNCOUNTED = -1  # tokens of a sample that came without counts


@dataclass(frozen=True)
class Sample:
    """One generated reply. Tokens are counted by the model's tokenizer, or `UNCOUNTED`."""

    doc_id: str
    position: int
    prompt: str
    reply: str
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int


@dataclass(frozen=True)
class Scored:
    """One sample with its newest verdict."""

    sample: Sample
    verdict: Verdict


def identity_of(spec_hash: str, model: str, sampler: dict[str, Any]) -> str:
    """What makes two runs the same run. Batch size, threads, device and paths are not part of it."""
    return sha256_bytes(canonical_json({"spec": spec_hash, "model": model, "sampler": sampler}))


class RunLog:
    """An open run log. Use as a context manager. `RunLogError` for a file that is not one."""

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise RunLogError(
                f"run log {self.path} not found",
                expected="a file written by `trimoe eval --log`",
                remedy="check the path",
            )
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._refuse_strangers(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a counted sample survives a power cut
            db.execute("PRAGMA foreign_keys = ON")
            _migrate(db)
        except sqlite3.Error as exc:
            if db is not None:
                db.close()
            raise RunLogError(
                f"{self.path} is not a readable run log",
                expected="an SQLite file written by trimoe",
                actual=str(exc),
                remedy="choose another --log",
            ) from exc
        except RunLogError:
            if db is not None:
                db.close()
            raise
        return db

    def _refuse_strangers(self, db: sqlite3.Connection) -> None:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if tables and application != _APPLICATION_ID:
            raise RunLogError(
                f"{self.path} is an SQLite file of something else",
                expected="a run log of trimoe",
                actual=f"tables {', '.join(sorted(tables)[:5])}",
                remedy="choose another --log",
            )
        if tables:
            unknown = {name for (name,) in db.execute("SELECT name FROM migrations")} - {
                name for name, _ in _MIGRATIONS
            }
            if unknown:
                raise RunLogError(
                    f"{self.path} was written by a newer trimoe",
                    expected="schema known to this version",
                    actual=f"migration {', '.join(sorted(unknown))}",
                    remedy="upgrade trimoe",
                )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; the write lock is taken at once, so two writers wait for each other."""
        with _transaction(self._db):
            yield

    # ------------------------------------------------------------ writing

    def start(
        self, name: str, bench: str, spec: dict[str, Any], model: str, sampler: dict[str, Any], settings: dict[str, Any]
    ) -> Run:
        """The run of this identity, new or continued, labelled `name`; refuses a label that means another run."""
        spec_hash = sha256_bytes(canonical_json(spec))
        identity = identity_of(spec_hash, model, sampler)
        with self.transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO runs (identity, bench, spec_hash, spec, model, sampler, settings, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (identity, bench, spec_hash, _text(spec), model, _text(sampler), _text(settings), _now()),
            )
            (run_id,) = self._db.execute("SELECT id FROM runs WHERE identity = ?", (identity,)).fetchone()
            self._db.execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", (name, bench, run_id))
            (taken,) = self._db.execute(
                "SELECT run_id FROM names WHERE name = ? AND bench = ?", (name, bench)
            ).fetchone()
            if taken != run_id:
                raise RunLogError(
                    f"{self.path} has another run of {bench} named {name}",
                    expected="one model and spec per name",
                    actual="the model, the bench or the sampler changed",
                    remedy="choose another --name or --log",
                )
        return next(run for run in self.runs() if run.run_id == run_id and run.name == name)

    def add(self, run: Run, rows: Sequence[tuple[Sample, Verdict]], scorer: int) -> None:
        """Store a batch of samples with their scores in one transaction; a sample that is there already stays."""
        with self.transaction():
            for sample, _ in rows:
                self._db.execute(
                    "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        run.run_id,
                        sample.doc_id,
                        sample.position,
                        sample.prompt,
                        sample.reply,
                        sample.finish_reason,
                        sample.prompt_tokens,
                        sample.reply_tokens,
                        _now(),
                    ),
                )
            self._score(run, [(sample.doc_id, verdict) for sample, verdict in rows], scorer)

    def score(self, run: Run, verdicts: Sequence[tuple[str, Verdict]], scorer: int) -> None:
        """Store verdicts of stored samples, replacing those of the same scorer version."""
        with self.transaction():
            self._score(run, verdicts, scorer)

    def _score(self, run: Run, verdicts: Sequence[tuple[str, Verdict]], scorer: int) -> None:
        for doc_id, v in verdicts:
            self._db.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run.run_id, doc_id, scorer, v.extracted, v.correct, v.cause, v.detail),
            )

    def event(self, run: Run | None, kind: str, **detail: Any) -> None:
        """Note something that happened: started, continued, finished."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO events (run_id, created, kind, detail) VALUES (?, ?, ?, ?)",
                (run.run_id if run else None, _now(), kind, _text(detail)),
            )

    # ------------------------------------------------------------ reading

    def runs(self) -> list[Run]:
        """Every named run, oldest first. A run with two names appears twice."""
        rows = self._db.execute(
            "SELECT r.id, n.name, r.bench, r.model, r.identity, r.spec_hash, r.spec, r.sampler "
            "FROM runs r JOIN names n ON n.run_id = r.id ORDER BY n.rowid"
        )
        return [
            Run(number, name, bench, model, identity, spec_hash, json.loads(spec), json.loads(sampler))
            for number, name, bench, model, identity, spec_hash, spec, sampler in rows
        ]

    def samples(self, run: Run) -> list[Scored]:
        """The run's samples in the bench's order, each with its newest verdict."""
        rows = self._db.execute(
            "SELECT s.doc_id, s.position, s.prompt, s.reply, s.finish_reason, s.prompt_tokens, s.reply_tokens, "
            f"c.correct, c.cause, c.extracted, c.detail {_LATEST} WHERE s.run_id = ? ORDER BY s.position",
            (run.run_id,),
        )
        return [
            Scored(
                Sample(*row[:7]),
                Verdict(None if row[7] is None else bool(row[7]), row[8] or "harness error", row[9], row[10] or ""),
            )
            for row in rows
        ]

    def scored_by(self, run: Run, scorer: int) -> set[str]:
        """Ids of the run's samples that this scorer version could judge."""
        rows = self._db.execute(
            "SELECT doc_id FROM scores WHERE run_id = ? AND scorer = ? AND correct IS NOT NULL", (run.run_id, scorer)
        )
        return {doc_id for (doc_id,) in rows}

    def verify(self) -> list[str]:
        """Faults of the file or of what it says; empty when sound."""
        faults = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        faults += [f"{row[0]} row {row[1]} refers to nothing" for row in self._db.execute("PRAGMA foreign_key_check")]
        for run in {run.run_id: run for run in self.runs()}.values():
            label = f"run {run.name} on {run.bench}"
            if sha256_bytes(canonical_json(run.spec)) != run.spec_hash:
                faults.append(f"{label}: the stored bench spec does not have the stored hash")
            if identity_of(run.spec_hash, run.model, run.sampler) != run.identity:
                faults.append(f"{label}: model or sampler do not have the stored identity")
            for scored in self.samples(run):
                if (scored.verdict.correct is True) != (scored.verdict.cause == "correct"):
                    faults.append(
                        f"{label}: {scored.sample.doc_id} says correct={scored.verdict.correct}, "
                        f"cause {scored.verdict.cause}"
                    )
        return faults


def _migrate(db: sqlite3.Connection) -> None:
    with _transaction(db):
        db.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied TEXT NOT NULL)")
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        applied = {name for (name,) in db.execute("SELECT name FROM migrations")}
    for name, statements in _MIGRATIONS:
        if name not in applied:
            with _transaction(db):
                if db.execute("SELECT 1 FROM migrations WHERE name = ?", (name,)).fetchone():
                    continue  # another process was faster
                for statement in statements:
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (name, _now()))


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _text(value: Any) -> str:
    return canonical_json(value).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
