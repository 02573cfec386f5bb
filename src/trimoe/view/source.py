"""Read-only access to a run log: opened for each query, never migrated, watched for changes.

Invariants: no statement can write; columns that an older schema lacks have the default that a migration would give.
Not guaranteed: a consistent view over several queries while another process writes.
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from trimoe.evaluate.log.schema import open_readonly

Stamp = tuple[tuple[int, int], ...]

TABLES = ("runs", "names", "samples", "scores", "events", "attempts", "failures", "results")
# default of each column that an older schema lacks
LATER = {
    "reasoning": "''",
    "reasoning_field": "''",
    "fallback": "0",
    "reasoning_tokens": "-1",
    "marks": "''",
    "seconds": "NULL",
    "raw": "NULL",
}
_RACY = 0.5  # seconds: a file that changed just now may change again without a newer time


@dataclass(frozen=True)
class Reader:
    """An open connection and the columns of its tables."""

    db: sqlite3.Connection
    columns: Mapping[str, frozenset[str]]

    def has(self, table: str) -> bool:
        """Whether this log's schema has the table."""
        return bool(self.columns[table])

    def sample_columns(self, *names: str) -> str:
        """SQL for columns of `samples s`, with defaults for those that the schema lacks."""
        there = self.columns["samples"]
        return ", ".join(f"s.{name}" if name in there else f"{LATER[name]} AS {name}" for name in names)


@dataclass(frozen=True)
class LogFile:
    """One log on disk."""

    path: Path

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open for one query. Raises `RunLogError` if the log can no longer be read."""
        with closing(open_readonly(self.path)) as db:
            db.text_factory = _text
            columns = {
                table: frozenset(row[1] for row in db.execute(f"PRAGMA table_info({table})")) for table in TABLES
            }
            yield Reader(db, columns)

    def stamp(self) -> Stamp | None:
        """(time, size) of the file and of its write-ahead log; None if they changed too recently to be reliable."""
        seen = []
        for path in (self.path, self.path.with_name(self.path.name + "-wal")):
            try:
                stat = path.stat()
            except OSError:
                continue
            if time.time() - stat.st_mtime < _RACY:
                return None
            seen.append((stat.st_mtime_ns, stat.st_size))
        return tuple(seen)


def _text(stored: bytes) -> str:
    """Decoded text; invalid bytes become replacement characters."""
    return stored.decode("utf-8", "replace")
