"""The run log: one SQLite file with every sample ever generated, and every judgement of it.

Invariants: a sample is durable before it is counted; a run is what its identity says (bench spec, model, sampler, and
the server's settings), so a second run of the same continues it; scores are rows of their own with the scorer's
version; `correct` NULL means not scored. A sample that failed is kept apart with its evidence until a reply takes its
place; it is read back as one without a score, never as a wrong one.
Not guaranteed: two processes writing the same run at once make the same sample twice (the first stays).
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from trimoe.bench.bench import Verdict
from trimoe.bench.cause import Observed
from trimoe.errors import RunLogError
from trimoe.evaluate.log.schema import now, open_log, open_readonly, transaction
from trimoe.io.publish import canonical_json, sha256_bytes

# the verdict of every sample that was stored last, whatever its scorer's number; a sample without one is not scored
_LATEST = """FROM samples s LEFT JOIN scores c ON c.run_id = s.run_id AND c.doc_id = s.doc_id AND c.rowid =
    (SELECT max(rowid) FROM scores n WHERE n.run_id = s.run_id AND n.doc_id = s.doc_id)"""

_DEFLATE_ABOVE = 2048  # bytes of a raw reply; shorter ones stay readable with any SQLite tool


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
    """One generated reply. Tokens are counted by the model's tokenizer, or `UNCOUNTED`.

    `reply` is the content as it came; `reasoning` came apart from it in the field `reasoning_field`, and `fallback`
    says that it was read because the content was empty. `reply_tokens` are of both together, `reasoning_tokens` of the
    reasoning. `marks` are remarks on how the reply was read. `error` is the kind of fault of a sample without a reply.
    `seconds` is the time of the attempt that brought the reply.
    """

    doc_id: str
    position: int
    prompt: str
    reply: str
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    reasoning: str = ""
    reasoning_field: str = ""
    fallback: bool = False
    reasoning_tokens: int = UNCOUNTED
    marks: tuple[str, ...] = ()
    error: str = ""
    seconds: float | None = field(default=None, compare=False)

    def observed(self) -> Observed:
        """What causes are made of. Without content all tokens are the reasoning's, whether counted apart or not."""
        total, apart = _known(self.reply_tokens), _known(self.reasoning_tokens)
        if self.reasoning and not self.reply.strip():
            apart = total if apart is None else apart
        content = None if total is None else max(0, total - (apart or 0))
        return Observed(self.reply, self.finish_reason, self.reasoning, content, apart, _known(self.prompt_tokens))


@dataclass(frozen=True)
class Scored:
    """One sample with its newest verdict."""

    sample: Sample
    verdict: Verdict


@dataclass(frozen=True)
class Attempt:
    """One request for a sample. `outcome` is `reply` or a kind of fault; `status` the HTTP status, if one came."""

    started: str
    seconds: float
    outcome: str
    status: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Arrived:
    """What came of asking for one sample: it, or its failure (`sample.error`, `detail`), with all that was seen."""

    sample: Sample
    attempts: tuple[Attempt, ...] = ()
    raw: bytes | None = None
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """A run's score over its first `asked` rows, with what it is worth. `score` None: errors are left, or no rows."""

    asked: int
    scorer: int
    correct: int
    scored: int
    errors: int
    score: float | None
    standard_error: float | None
    causes: dict[str, int]
    ceilings: dict[str, Any] | None = None
    marks: tuple[str, ...] = ()


def identity_of(spec_hash: str, model: str, sampler: Mapping[str, Any]) -> str:
    """What makes two runs the same run. Batch size, threads, device and paths are not part of it."""
    return sha256_bytes(canonical_json({"spec": spec_hash, "model": model, "sampler": sampler}))


class RunLog:
    """An open run log. Use as a context manager. `RunLogError` for a file that is not one."""

    def __init__(self, path: Path | str, *, create: bool = True, readonly: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise RunLogError(
                f"run log {self.path} not found",
                expected="a file written by `trimoe eval --log`",
                remedy="check the path",
            )
        if not create and not readonly:
            open_readonly(self.path).close()  # a file without a log in it is refused, and does not become one
        if create and not readonly:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = open_readonly(self.path) if readonly else open_log(self.path)

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
        with transaction(self._db):
            yield

    # ------------------------------------------------------------ writing

    def start(
        self,
        name: str,
        bench: str,
        spec: dict[str, Any],
        model: str,
        sampler: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> Run:
        """The run of this identity, new or continued, labelled `name`; refuses a label that means another run."""
        spec_hash = sha256_bytes(canonical_json(spec))
        identity = identity_of(spec_hash, model, sampler)
        with self.transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO runs (identity, bench, spec_hash, spec, model, sampler, settings, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (identity, bench, spec_hash, _text(spec), model, _text(sampler), _text(settings), now()),
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
                    actual="the model, the bench, the sampler or the server's settings changed: "
                    + self._changes(taken, spec, model, sampler),
                    remedy="choose another --name or --log",
                )
        return next(run for run in self.runs() if run.run_id == run_id and run.name == name)

    def _changes(self, taken: int, spec: dict[str, Any], model: str, sampler: Mapping[str, Any]) -> str:
        before = self._db.execute("SELECT spec, model, sampler FROM runs WHERE id = ?", (taken,)).fetchone()
        old = {**json.loads(before[0]), "model": before[1], **json.loads(before[2])}
        new = {**spec, "model": model, **json.loads(_text(sampler))}
        keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        return "; ".join(f"{key} {_short(old.get(key))}, now {_short(new.get(key))}" for key in keys)

    def add(self, run: Run, rows: Sequence[tuple[Sample, Verdict]], scorer: int) -> None:
        """Store a batch of samples with their scores in one transaction; a sample that is there already stays."""
        with self.transaction():
            for sample, _ in rows:
                self._insert(run, sample, None)
            self._score(run, [(sample.doc_id, verdict) for sample, verdict in rows], scorer)

    def arrived(self, rows: Sequence[tuple[Run, Arrived]]) -> None:
        """Store what came from a server, one transaction for all; a sample that is there already stays.

        A reply takes the place of an earlier failure of the same sample; a failure never takes that of a reply.
        """
        with self.transaction():
            for run, one in rows:
                if one.sample.error:
                    self._fail(run, one)
                else:
                    self._insert(run, one.sample, one.raw)
                    # a result that counts this one as failed holds no longer
                    self._db.execute("DELETE FROM results WHERE run_id = ? AND errors > 0", (run.run_id,))
                    self._db.execute(
                        "DELETE FROM failures WHERE run_id = ? AND doc_id = ?", (run.run_id, one.sample.doc_id)
                    )
                self._db.executemany(
                    "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (run.run_id, one.sample.doc_id, a.started, a.seconds, a.outcome, a.status, a.detail)
                        for a in one.attempts
                    ],
                )

    def _insert(self, run: Run, s: Sample, raw: bytes | None) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO samples (run_id, doc_id, position, prompt, reply, finish_reason, prompt_tokens, "
            "reply_tokens, created, reasoning, reasoning_field, fallback, reasoning_tokens, marks, seconds, raw) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(run.run_id, s.doc_id, s.position, s.prompt, s.reply, s.finish_reason, s.prompt_tokens),
                *(s.reply_tokens, now(), s.reasoning, s.reasoning_field, s.fallback, s.reasoning_tokens),
                *("\n".join(s.marks), s.seconds, _packed(raw)),
            ),
        )

    def _fail(self, run: Run, one: Arrived) -> None:
        s = one.sample
        self._db.execute(
            "INSERT OR REPLACE INTO failures SELECT ?, ?, ?, ?, ?, ?, ?, ? "
            "WHERE NOT EXISTS (SELECT 1 FROM samples WHERE run_id = ? AND doc_id = ?)",
            (
                run.run_id,
                s.doc_id,
                s.position,
                s.prompt,
                s.error,
                one.detail,
                _packed(one.raw),
                now(),
                run.run_id,
                s.doc_id,
            ),
        )

    def score(self, run: Run, verdicts: Sequence[tuple[str, Verdict]], scorer: int) -> None:
        """Store verdicts of stored samples, replacing those of the same scorer version."""
        with self.transaction():
            self._score(run, verdicts, scorer)

    def _score(self, run: Run, verdicts: Sequence[tuple[str, Verdict]], scorer: int) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(run.run_id, doc_id, scorer, v.extracted, v.correct, v.cause, v.detail) for doc_id, v in verdicts],
        )

    def conclude(self, run: Run, result: Result) -> None:
        """Store a result; the newest over the same rows by the same scorer stays."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(run.run_id, result.asked, result.scorer, result.correct, result.scored, result.errors),
                    *(result.score, result.standard_error, _text(result.causes)),
                    None if result.ceilings is None else _text(result.ceilings),
                    *("\n".join(result.marks), now()),
                ),
            )

    def event(self, run: Run | None, kind: str, **detail: Any) -> None:
        """Note something that happened: started, continued, finished."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO events (run_id, created, kind, detail) VALUES (?, ?, ?, ?)",
                (run.run_id if run else None, now(), kind, _text(detail)),
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
        """The run's samples in the bench's order, each with its newest verdict; failed ones among them, unscored."""
        rows = self._db.execute(
            "SELECT s.doc_id, s.position, s.prompt, s.reply, s.finish_reason, s.prompt_tokens, s.reply_tokens, "
            "s.reasoning, s.reasoning_field, s.fallback, s.reasoning_tokens, s.marks, s.seconds, "
            f"c.correct, c.cause, c.extracted, c.detail {_LATEST} WHERE s.run_id = ? ORDER BY s.position, s.rowid",
            (run.run_id,),
        )
        there = [
            Scored(
                Sample(*(*row[:9], bool(row[9]), row[10], tuple(filter(None, row[11].split("\n"))), "", row[12])),
                Verdict(None if row[13] is None else bool(row[13]), row[14] or "harness error", row[15], row[16] or ""),
            )
            for row in rows
        ]
        failed = self._failed(run)
        return sorted([*there, *failed], key=lambda s: s.sample.position) if failed else there

    def _failed(self, run: Run) -> list[Scored]:
        rows = self._db.execute(
            "SELECT doc_id, position, prompt, kind, detail FROM failures WHERE run_id = ? ORDER BY position",
            (run.run_id,),
        )
        return [
            Scored(
                Sample(doc_id, position, prompt, "", "", UNCOUNTED, UNCOUNTED, error=kind),
                Verdict(None, "harness error", None, f"{kind}: {detail}" if detail else kind),
            )
            for doc_id, position, prompt, kind, detail in rows
        ]

    def raw(self, run: Run, doc_id: str) -> bytes | None:
        """The whole reply as the server sent it; None where none was kept (generated in this process, imported)."""
        for table in ("samples", "failures"):
            row = self._db.execute(
                f"SELECT raw FROM {table} WHERE run_id = ? AND doc_id = ?", (run.run_id, doc_id)
            ).fetchone()
            if row is not None and row[0] is not None:
                return unpacked(row[0])
        return None

    def attempts(self, run: Run, doc_id: str | None = None) -> list[tuple[str, Attempt]]:
        """Every request of a run, or of one of its samples, in the order they were stored."""
        rows = self._db.execute(
            "SELECT doc_id, started, seconds, outcome, status, detail FROM attempts "
            "WHERE run_id = ?1 AND (?2 IS NULL OR doc_id = ?2) ORDER BY rowid",
            (run.run_id, doc_id),
        )
        return [(row[0], Attempt(*row[1:])) for row in rows]

    def results(self, run: Run) -> list[Result]:
        """Stored results of a run, oldest first."""
        rows = self._db.execute(
            "SELECT asked, scorer, correct, scored, errors, score, standard_error, causes, ceilings, marks "
            "FROM results WHERE run_id = ? ORDER BY created, rowid",
            (run.run_id,),
        )
        return [
            Result(
                *(
                    *(*row[:7], json.loads(row[7]), json.loads(row[8]) if row[8] else None),
                    tuple(filter(None, row[9].split("\n"))),
                )
            )
            for row in rows
        ]

    def events(self, run: Run) -> list[tuple[str, dict[str, Any]]]:
        """What happened to a run, oldest first: (kind, detail)."""
        rows = self._db.execute("SELECT kind, detail FROM events WHERE run_id = ? ORDER BY id", (run.run_id,))
        return [(kind, json.loads(detail)) for kind, detail in rows]

    def scored_by(self, run: Run, scorer: int) -> set[str]:
        """Ids of the run's samples whose newest verdict is this scorer version's, and is one."""
        rows = self._db.execute(
            f"SELECT s.doc_id {_LATEST} WHERE s.run_id = ? AND c.scorer = ? AND c.correct IS NOT NULL",
            (run.run_id, scorer),
        )
        return {doc_id for (doc_id,) in rows}

    def verify(self) -> list[str]:
        """Faults of the file or of what it says; empty when sound."""
        faults = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        faults += [f"{row[0]} row {row[1]} refers to nothing" for row in self._db.execute("PRAGMA foreign_key_check")]
        for run in {run.run_id: run for run in self.runs()}.values():
            faults += [f"run {run.name} on {run.bench}: {fault}" for fault in self._faults(run)]
        return faults

    def _faults(self, run: Run) -> Iterator[str]:
        if sha256_bytes(canonical_json(run.spec)) != run.spec_hash:
            yield "the stored bench spec does not have the stored hash"
        if identity_of(run.spec_hash, run.model, run.sampler) != run.identity:
            yield "model or sampler do not have the stored identity"
        for scored in self.samples(run):
            s, v = scored.sample, scored.verdict
            if (v.correct is True) != (v.cause == "correct"):
                yield f"{s.doc_id} says correct={v.correct}, cause {v.cause}"
            if s.fallback and s.reply.strip():
                yield f"{s.doc_id} was read from its reasoning, but has content"
        for (doc_id,) in self._db.execute(
            "SELECT f.doc_id FROM failures f JOIN samples s USING (run_id, doc_id) WHERE run_id = ?", (run.run_id,)
        ):
            yield f"{doc_id} has a reply and an open failure"
        yield from self._wrong_results(run)
        for doc_id, packed in self._db.execute(
            "SELECT doc_id, raw FROM samples WHERE run_id = ? AND raw IS NOT NULL", (run.run_id,)
        ):
            try:
                json.loads(unpacked(packed))
            except (ValueError, zlib.error):
                yield f"the raw reply of {doc_id} is damaged"

    def _wrong_results(self, run: Run) -> Iterator[str]:
        """Results that are not what the verdicts of their scorer come to. Imports have no order to recount by."""
        if "imported" in run.spec:
            return
        for result in self.results(run):
            newest = self._db.execute(
                "SELECT scorer FROM scores WHERE run_id = ? ORDER BY rowid DESC LIMIT 1", (run.run_id,)
            ).fetchone()
            if newest is None or result.scorer != newest[0]:
                continue
            verdicts = [s.verdict.correct for s in self.samples(run) if s.sample.position < result.asked]
            counted = (sum(v is True for v in verdicts), sum(v is not None for v in verdicts))
            if counted != (result.correct, result.scored):
                yield (
                    f"the stored result of {result.asked} rows says {result.correct} of {result.scored}, the verdicts "
                    f"{counted[0]} of {counted[1]}: rescore"
                )


def _packed(raw: bytes | None) -> str | bytes | None:
    """Short replies as text; long ones, and what is no text, deflated."""
    if raw is None:
        return None
    if len(raw) <= _DEFLATE_ABOVE:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            pass  # a damaged reply is evidence as it is
    return zlib.compress(raw, 1)


def unpacked(stored: str | bytes) -> bytes:
    """The bytes that came."""
    return stored.encode() if isinstance(stored, str) else zlib.decompress(stored)


def _known(tokens: int) -> int | None:
    return None if tokens == UNCOUNTED else tokens


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value: Any) -> str:
    return canonical_json(value).decode()
