"""The run log: one SQLite file with every reply and every verdict.

Invariants: a reply is durable before anything counts it. A run is identified by its bench spec, model, sampler and
server settings; evaluating the same again resumes it. Verdicts are rows of their own with the version of their scorer;
`correct` NULL means not scored. A failed sample is kept with its evidence until a reply replaces it, and is never read
back as a wrong answer.
An evaluation holds a lock on its runs (`lock`); of two replies to one row that are stored all the same, the first
counts.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Verdict
from trimoe.errors import RunLogError
from trimoe.evaluate.log.chain import KEYS, entered, entered_last
from trimoe.evaluate.log.export import to_pandas
from trimoe.evaluate.log.reader import LogReader
from trimoe.evaluate.log.records import Arrived, Result, Run, Sample, identity_of
from trimoe.evaluate.log.schema import now, open_log, open_readonly, transaction
from trimoe.evaluate.log.verify import verified
from trimoe.io.canonical import canonical_json, sha256_bytes

_DEFLATE_ABOVE = 2048  # bytes of a raw reply; shorter ones stay readable with any SQLite tool


class RunLog(LogReader):
    """An open run log. Use it as a context manager. Raises `RunLogError` for a file that is not one.

    >>> with trimoe.RunLog("runs.db", readonly=True) as log:
    ...     [(run.name, run.bench, len(log.samples(run))) for run in log.runs()]
    [('base', 'tiny-code', 4), ('small', 'tiny-code', 4)]
    """

    def __init__(self, path: Path | str, *, create: bool = True, readonly: bool = False) -> None:
        path = Path(path)
        if not create and not path.is_file():
            raise RunLogError(
                f"run log {path} not found",
                expected="a file written by `trimoe eval --log`",
                remedy="check the path",
            )
        if not create and not readonly:
            open_readonly(path).close()  # refuses a file without a log instead of creating one in it
        if create and not readonly:
            path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, open_readonly(path) if readonly else open_log(path))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. The write lock is taken at once, so two writers wait for each other."""
        with transaction(self.db):
            yield

    def start(
        self,
        name: str,
        bench: str,
        spec: dict[str, Any],
        model: str,
        sampler: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> Run:
        """The run of this identity, new or resumed, labelled `name`. `RunLogError` if the label names another run."""
        spec_hash = sha256_bytes(canonical_json(spec))
        identity = identity_of(spec_hash, model, sampler)
        with self.transaction():
            new = self.db.execute(
                "INSERT OR IGNORE INTO runs (identity, bench, spec_hash, spec, model, sampler, settings, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (identity, bench, spec_hash, _text(spec), model, _text(sampler), _text(settings), now()),
            )
            (run_id,) = self.db.execute("SELECT id FROM runs WHERE identity = ?", (identity,)).fetchone()
            if new.rowcount == 1:
                entered(self.db, "runs", run_id)
            label = self.db.execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", (name, bench, run_id))
            if label.rowcount == 1:
                entered(self.db, "names", name, bench)
            (taken,) = self.db.execute(
                "SELECT run_id FROM names WHERE name = ? AND bench = ?", (name, bench)
            ).fetchone()
            if taken != run_id:
                raise RunLogError(
                    f"{self.path} has another run of {bench} named {name}",
                    expected="one model and spec per name",
                    actual="the model, the bench, the sampler or the server's settings changed: "
                    + self._changes(taken, spec, model, sampler),
                    remedy="choose another --name or --log",
                )
        return next(run for run in self.runs() if run.run_id == run_id and run.name == name)

    def _changes(self, taken: int, spec: dict[str, Any], model: str, sampler: Mapping[str, Any]) -> str:
        before = self.db.execute("SELECT spec, model, sampler FROM runs WHERE id = ?", (taken,)).fetchone()
        old = {**json.loads(before["spec"]), "model": before["model"], **json.loads(before["sampler"])}
        new = {**spec, "model": model, **json.loads(_text(sampler))}
        keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        return "; ".join(f"{key} {_short(old.get(key))}, now {_short(new.get(key))}" for key in keys)

    def add(self, run: Run, rows: Sequence[tuple[Sample, Verdict]], scorer: int) -> None:
        """Store samples with their verdicts in one transaction. A sample that is already stored is kept."""
        with self.transaction():
            for sample, _ in rows:
                self._insert(run, sample, None)
            self._score(run, [(sample.doc_id, verdict) for sample, verdict in rows], scorer)

    def arrived(self, rows: Sequence[tuple[Run, Arrived]]) -> None:
        """Store replies and failures in one transaction. A sample that is already stored is kept.

        A reply replaces an earlier failure of the same sample; a failure never replaces a reply.
        """
        with self.transaction():
            for run, one in rows:
                if one.sample.error:
                    self._fail(run, one)
                else:
                    self._insert(run, one.sample, one.raw)
                    # A result that counts this sample as failed is no longer valid.
                    self._remove("results", "run_id = ? AND errors > 0", (run.run_id,))
                    self._remove("failures", "run_id = ? AND doc_id = ?", (run.run_id, one.sample.doc_id))
                for a in one.attempts:
                    self.db.execute(
                        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (run.run_id, one.sample.doc_id, a.started, a.seconds, a.outcome, a.status, a.detail),
                    )
                    entered_last(self.db, "attempts")

    def _remove(self, table: str, where: str, values: tuple[Any, ...]) -> None:
        keys = self.db.execute(f"SELECT {', '.join(KEYS[table])} FROM {table} WHERE {where}", values).fetchall()
        self.db.execute(f"DELETE FROM {table} WHERE {where}", values)
        for key in keys:
            entered(self.db, table, *key)

    def _insert(self, run: Run, s: Sample, raw: bytes | None) -> None:
        columns = {
            "run_id": run.run_id,
            "doc_id": s.doc_id,
            "position": s.position,
            "prompt": s.prompt,
            "reply": s.reply,
            "finish_reason": s.finish_reason,
            "prompt_tokens": s.prompt_tokens,
            "reply_tokens": s.reply_tokens,
            "created": now(),
            "reasoning": s.reasoning,
            "reasoning_field": s.reasoning_field,
            "fallback": s.fallback,
            "reasoning_tokens": s.reasoning_tokens,
            "marks": "\n".join(s.marks),
            "seconds": s.seconds,
            "raw": _packed(raw),
        }
        if self.db.execute(f"INSERT OR IGNORE INTO samples {_values(columns)}", columns).rowcount == 1:
            entered(self.db, "samples", run.run_id, s.doc_id)

    def _fail(self, run: Run, one: Arrived) -> None:
        s = one.sample
        columns = {
            "run_id": run.run_id,
            "doc_id": s.doc_id,
            "position": s.position,
            "prompt": s.prompt,
            "kind": s.error,
            "detail": one.detail,
            "raw": _packed(one.raw),
            "created": now(),
        }
        stored = self.db.execute("SELECT 1 FROM samples WHERE run_id = :run_id AND doc_id = :doc_id", columns)
        if stored.fetchone() is None:
            self.db.execute(f"INSERT OR REPLACE INTO failures {_values(columns)}", columns)
            entered(self.db, "failures", run.run_id, s.doc_id)

    def score(self, run: Run, verdicts: Sequence[tuple[str, Verdict]], scorer: int) -> None:
        """Store verdicts of stored samples. They replace those of the same scorer version."""
        with self.transaction():
            self._score(run, verdicts, scorer)

    def _score(self, run: Run, verdicts: Sequence[tuple[str, Verdict]], scorer: int) -> None:
        for doc_id, v in verdicts:
            self.db.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run.run_id, doc_id, scorer, v.extracted, v.correct, v.cause, v.detail),
            )
            entered(self.db, "scores", run.run_id, doc_id, scorer)

    def conclude(self, run: Run, result: Result) -> None:
        """Store a result. It replaces an earlier one over the same rows by the same scorer version."""
        columns = {
            "run_id": run.run_id,
            "asked": result.asked,
            "scorer": result.scorer,
            "correct": result.correct,
            "scored": result.scored,
            "errors": result.errors,
            "score": result.score,
            "standard_error": result.standard_error,
            "causes": _text(result.causes),
            "ceilings": None if result.ceilings is None else _text(result.ceilings),
            "marks": "\n".join(result.marks),
            "created": now(),
        }
        with self.transaction():
            self.db.execute(f"INSERT OR REPLACE INTO results {_values(columns)}", columns)
            entered(self.db, "results", run.run_id, result.asked, result.scorer)

    def event(self, run: Run | None, kind: str, **detail: Any) -> None:
        """Record an event of a run: generating, asking, paused, rescoring, ..."""
        with self.transaction():
            self.db.execute(
                "INSERT INTO events (run_id, created, kind, detail) VALUES (?, ?, ?, ?)",
                (run.run_id if run else None, now(), kind, _text(detail)),
            )
            entered_last(self.db, "events")

    def verify(self) -> list[str]:
        """Faults of the file or contradictions in its contents; empty if it is sound."""
        return verified(self).faults

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one row per sample and the columns of `trimoe log export`. Needs pandas."""
        return to_pandas(self)


def _values(columns: Mapping[str, Any]) -> str:
    """`(a, b) VALUES (:a, :b)` for the keys of `columns`."""
    return f"({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})"


def _packed(raw: bytes | None) -> str | bytes | None:
    """Short replies as text; long ones, and bytes that are not UTF-8, deflated."""
    if raw is None:
        return None
    if len(raw) <= _DEFLATE_ABOVE:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            pass  # a damaged reply is evidence: its bytes are kept
    return zlib.compress(raw, 1)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: Any) -> str:
    return canonical_json(value).decode()
