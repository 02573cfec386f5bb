"""All runs of all logs with their scores, reread when a log changes.

Invariants: scores and intervals come from the functions of `trimoe compare`; a run's id is a hash of its log's path,
its identity and its name, so links survive a restart. Thread-safe.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from trimoe.evaluate.log.marks import left_out, marks_of_events, stated
from trimoe.evaluate.log.records import Run, Scored
from trimoe.evaluate.log.summary import score_of
from trimoe.judge.comparison import Row
from trimoe.judge.gather import Read
from trimoe.judge.rows import against_base, own_row
from trimoe.judge.runs import differences
from trimoe.view import queries
from trimoe.view.source import LogFile, Stamp

LIVE_SECONDS = 90  # a run that stored nothing for this long counts as stopped


@dataclass(frozen=True, eq=False)
class Shown:
    """One run as shown on pages. `samples` carry no texts; `asked` is the number of requested rows, if the log says."""

    id: str
    log: LogFile
    facts: queries.Facts
    samples: tuple[Scored, ...]
    asked: int | None
    newest: str | None
    events: tuple[queries.Event, ...]
    marks: tuple[str, ...] = ()
    """Caveats of the score: checks switched off, guards ignored, rows left out."""

    @property
    def run(self) -> Run:
        """Name, bench, model and settings."""
        return self.facts.run

    @cached_property
    def read(self) -> Read:
        """Input of the comparison."""
        return Read(self.run, self.samples, score_of(self.run, self.samples)[0], self.marks)

    @cached_property
    def row(self) -> Row:
        """Score, interval and causes over the scored rows."""
        return own_row(self.read, True)

    @cached_property
    def causes(self) -> dict[str, int]:
        """Samples per cause, `correct` first, then most frequent first."""
        counts = Counter[str](s.verdict.cause for s in self.samples)
        return dict(sorted(counts.items(), key=lambda item: (item[0] != "correct", -item[1], item[0])))

    @cached_property
    def places(self) -> dict[str, int]:
        """doc_id -> index in `samples`."""
        return {s.sample.doc_id: i for i, s in enumerate(self.samples)}

    @property
    def state(self) -> str:
        """complete, running, paused or stopped; empty if the log does not say how many rows were requested."""
        if self.asked is None:
            return ""
        if len(self.samples) >= self.asked:
            return "complete"
        if self.events and self.events[-1].kind == "paused":
            return "paused"
        last = max(filter(None, (self.newest, self.events[-1].created if self.events else None)), default=None)
        return "running" if last and _age(last) < LIVE_SECONDS else "stopped"


class Catalog:
    """The runs of some logs. Raises `RunLogError` at once for a log that cannot be shown."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.logs = [LogFile(path) for path in dict.fromkeys(path.resolve() for path in paths)]
        self._lock = threading.Lock()
        self._kept: dict[Path, tuple[Stamp, list[Shown]]] = {}
        self.all()

    def all(self) -> list[Shown]:
        """The current state of every run."""
        with self._lock:
            return [shown for log in self.logs for shown in self._of(log)]

    def get(self, run_id: str) -> Shown | None:
        """The current state of one run, or None."""
        return next((shown for shown in self.all() if shown.id == run_id), None)

    def _of(self, log: LogFile) -> list[Shown]:
        stamp = log.stamp()
        kept = self._kept.get(log.path)
        if kept is not None and stamp == kept[0]:
            return kept[1]
        with log.reader() as reader:
            found = []
            for facts in queries.runs(reader):
                happened = tuple(queries.events(reader, facts.run.run_id))
                found.append(
                    Shown(
                        _id(log, facts.run),
                        log,
                        facts,
                        tuple(queries.verdicts(reader, facts.run.run_id)),
                        _asked(happened),
                        queries.newest(reader, facts.run.run_id),
                        happened,
                        _marks(
                            happened,
                            queries.left_out(reader, facts.run.run_id),
                            queries.stated(reader, facts.run.run_id),
                        ),
                    )
                )
        if stamp is not None:
            self._kept[log.path] = (stamp, found)
        return found


@dataclass(frozen=True)
class Pair:
    """Two runs of one bench, item by item. `row` has the paired difference `after` minus `before`, unless `apart` names
    settings that make the two incomparable."""

    before: Shown
    after: Shown
    row: Row
    apart: tuple[str, ...]


@lru_cache(maxsize=64)  # the bootstrap takes 0.2 s; a changed run is a new object
def pair(before: Shown, after: Shown) -> Pair:
    """Two runs side by side, with the paired test if they are comparable."""
    if before.run.bench != after.run.bench:
        return Pair(before, after, after.row, (f"bench {before.run.bench} against {after.run.bench}",))
    apart = tuple(f"{what}: {', '.join(found)}" for what, found in differences(before.run, after.run))
    row = after.row if apart else against_base(after.row, before.read, after.read, True)
    return Pair(before, after, row, apart)


def _marks(happened: Sequence[queries.Event], rows: int, other: int) -> tuple[str, ...]:
    found = marks_of_events((event.kind, event.detail) for event in happened)
    found += ([left_out(rows)] if rows else []) + ([stated(other)] if other else [])
    return tuple(mark.text for mark in found)


def _asked(happened: Sequence[queries.Event]) -> int | None:
    """Number of rows that the last evaluation requested, or that an import added."""
    for event in reversed(happened):
        wanted: Any = event.detail.get("of" if event.kind in ("asking", "generating") else "samples")
        if event.kind in ("asking", "generating", "imported") and isinstance(wanted, int):
            return wanted
    return None


def _id(log: LogFile, run: Run) -> str:
    text = "\0".join((str(log.path), run.identity, run.name))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _age(created: str) -> float:
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return float("inf")
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()
