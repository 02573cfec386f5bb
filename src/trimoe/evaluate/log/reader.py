"""Reads a run log: runs, samples with their newest verdicts, attempts, results, events."""

import json
import sqlite3
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trimoe.bench.bench import NOTE, Verdict
from trimoe.errors import RunLogError, TrimoeError
from trimoe.evaluate.log.records import UNCOUNTED, Attempt, Result, Run, Sample, Scored
from trimoe.io.expand import inflated

# Each sample with the verdict stored last, whatever its scorer version; a sample without one is not scored.
_LATEST = """FROM samples s LEFT JOIN scores c ON c.run_id = s.run_id AND c.doc_id = s.doc_id AND c.rowid =
    (SELECT max(rowid) FROM scores n WHERE n.run_id = s.run_id AND n.doc_id = s.doc_id)"""


class LogReader:
    """The reading half of `RunLog`. Use as a context manager. `db` has the newest schema."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self.db = path, db
        self.db.row_factory = sqlite3.Row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            runs, samples = (
                self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("names", "samples")
            )
        except (sqlite3.Error, TrimoeError):
            return f"RunLog({str(self.path)!r}, closed)"
        return f"RunLog({str(self.path)!r}, {runs} runs, {samples} samples)"

    def close(self) -> None:
        """Release the file."""
        self.db.close()

    def runs(self) -> list[Run]:
        """Every named run, oldest first. A run with two names appears twice."""
        rows = self.db.execute(
            "SELECT r.id, n.name, r.bench, r.model, r.identity, r.spec_hash, r.spec, r.sampler "
            "FROM runs r JOIN names n ON n.run_id = r.id ORDER BY n.rowid"
        )
        return [
            Run(
                run_id=row["id"],
                name=row["name"],
                bench=row["bench"],
                model=row["model"],
                identity=row["identity"],
                spec_hash=row["spec_hash"],
                spec=self._json(row["spec"], "a bench spec"),
                sampler=self._json(row["sampler"], "a sampler"),
            )
            for row in rows
        ]

    def _json(self, text: Any, what: str) -> dict[str, Any]:
        """A stored JSON object. `RunLogError` if it is damaged."""
        try:
            found = json.loads(text)
        except (ValueError, TypeError, RecursionError) as exc:
            raise self._damaged(f"{what}: {exc}") from exc
        if not isinstance(found, dict):
            raise self._damaged(f"{what} is not a JSON object")
        return found

    def _damaged(self, what: str) -> RunLogError:
        return RunLogError(
            f"run log {self.path} is damaged",
            expected="the values that trimoe wrote",
            actual=what,
            remedy=f"`trimoe log recover {self.path} -o NEW.db` writes what can still be read into a new log",
        )

    def samples(self, run: Run) -> list[Scored]:
        """The run's samples in the bench's order with their newest verdicts. Failed samples are included, unscored."""
        rows = self.db.execute(
            "SELECT s.doc_id, s.position, s.prompt, s.reply, s.finish_reason, s.prompt_tokens, s.reply_tokens, "
            "s.reasoning, s.reasoning_field, s.fallback, s.reasoning_tokens, s.marks, s.seconds, "
            f"c.correct, c.cause, c.extracted, c.detail {_LATEST} WHERE s.run_id = ? ORDER BY s.position, s.rowid",
            (run.run_id,),
        )
        replied = [Scored(_sample(row), _verdict(row)) for row in rows]
        failed = self._failed(run)
        return sorted([*replied, *failed], key=lambda s: s.sample.position) if failed else replied

    def _failed(self, run: Run) -> list[Scored]:
        rows = self.db.execute(
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
        """The whole reply as the server sent it. None for replies generated in this process and for imports."""
        for table in ("samples", "failures"):
            row = self.db.execute(
                f"SELECT raw FROM {table} WHERE run_id = ? AND doc_id = ?", (run.run_id, doc_id)
            ).fetchone()
            if row is not None and row["raw"] is not None:
                try:
                    return unpacked(row["raw"])
                except (zlib.error, TypeError, ValueError) as exc:
                    raise self._damaged(f"the raw reply of {doc_id}: {exc}") from exc
        return None

    def attempts(self, run: Run, doc_id: str | None = None) -> list[tuple[str, Attempt]]:
        """Every request of a run, or of one of its samples, in the order they were stored."""
        rows = self.db.execute(
            "SELECT doc_id, started, seconds, outcome, status, detail FROM attempts "
            "WHERE run_id = ?1 AND (?2 IS NULL OR doc_id = ?2) ORDER BY rowid",
            (run.run_id, doc_id),
        )
        return [
            (row["doc_id"], Attempt(row["started"], row["seconds"], row["outcome"], row["status"], row["detail"]))
            for row in rows
        ]

    def results(self, run: Run) -> list[Result]:
        """Stored results of a run, oldest first."""
        rows = self.db.execute(
            "SELECT asked, scorer, correct, scored, errors, score, standard_error, causes, ceilings, marks "
            "FROM results WHERE run_id = ? ORDER BY created, rowid",
            (run.run_id,),
        )
        return [
            Result(
                asked=row["asked"],
                scorer=row["scorer"],
                correct=row["correct"],
                scored=row["scored"],
                errors=row["errors"],
                score=row["score"],
                standard_error=row["standard_error"],
                causes=self._json(row["causes"], "causes"),
                ceilings=self._json(row["ceilings"], "ceilings") if row["ceilings"] else None,
                marks=_lines(row["marks"]),
            )
            for row in rows
        ]

    def events(self, run: Run) -> list[tuple[str, dict[str, Any]]]:
        """What happened to a run, oldest first: (kind, detail)."""
        rows = self.db.execute("SELECT kind, detail FROM events WHERE run_id = ? ORDER BY id", (run.run_id,))
        return [(row["kind"], self._json(row["detail"], "an event")) for row in rows]

    def scored_by(self, run: Run, scorer: int) -> set[str]:
        """Ids of the samples whose newest verdict is by this scorer version and is correct or not, not unscored."""
        rows = self.db.execute(
            f"SELECT s.doc_id {_LATEST} WHERE s.run_id = ? AND c.scorer = ? AND c.correct IS NOT NULL",
            (run.run_id, scorer),
        )
        return {row["doc_id"] for row in rows}

    def stated(self, run: Run) -> int:
        """How many samples state another final answer than their newest verdict is about."""
        query = f"SELECT count(*) AS n {_LATEST} WHERE s.run_id = ? AND instr(c.detail, ?)"
        return int(self.db.execute(query, (run.run_id, NOTE)).fetchone()["n"])


def _sample(row: sqlite3.Row) -> Sample:
    return Sample(
        doc_id=row["doc_id"],
        position=row["position"],
        prompt=row["prompt"],
        reply=row["reply"],
        finish_reason=row["finish_reason"],
        prompt_tokens=row["prompt_tokens"],
        reply_tokens=row["reply_tokens"],
        reasoning=row["reasoning"],
        reasoning_field=row["reasoning_field"],
        fallback=bool(row["fallback"]),
        reasoning_tokens=row["reasoning_tokens"],
        marks=_lines(row["marks"]),
        seconds=row["seconds"],
    )


def _verdict(row: sqlite3.Row) -> Verdict:
    return Verdict(
        correct=None if row["correct"] is None else bool(row["correct"]),
        cause=row["cause"] or "harness error",
        extracted=row["extracted"],
        detail=row["detail"] or "",
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split("\n")))


def unpacked(stored: str | bytes) -> bytes:
    """A stored raw reply as the bytes that were received."""
    return stored.encode() if isinstance(stored, str) else inflated(stored)
