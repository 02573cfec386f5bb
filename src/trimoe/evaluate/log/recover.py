"""Writes what can be read of a damaged run log into a new one.

Invariants: the damaged file is opened read-only and stays as it is. A row is taken whole or not at all: one with text
that is not UTF-8 is left out, so the next `trimoe eval` asks for it again. Rows whose run or sample is lost are left
out. The new log has a hash chain of its own, whose first entry says that its rows were recovered, and each run has an
event `recovered`, which is a mark of its score.
Not guaranteed: that a recovered row is what trimoe wrote; rows that differ from the old log's hash chain are counted.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trimoe.errors import RunLogError, TrimoeError
from trimoe.evaluate.log.chain import COLUMNS, adopted, digest, entered_last, newest_digests
from trimoe.evaluate.log.schema import is_run_log, now, open_log, transaction
from trimoe.io.atomic import publish_file, require_absent
from trimoe.io.canonical import canonical_json

_OBJECTS = {"spec", "sampler", "settings", "causes"}  # columns with JSON objects
_PROBES = 1_000_000  # row numbers that are tried one by one in a damaged stretch


@dataclass
class Recovered:
    """Rows by table: `kept`, `lost` (unreadable, or without their run or sample), `edited` (differ from the chain).

    `lost` counts rows that could be seen; a table of which nothing can be read is in `unreadable`.
    """

    out: Path
    kept: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    edited: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"out": str(self.out)}


def recover(path: Path | str, out: Path | str) -> Recovered:
    """Copy every readable row of the log `path` into the new log `out`. `RunLogError` if it holds no run."""
    source, target = Path(path), Path(out)
    require_absent(target)
    if not source.is_file():
        raise RunLogError(f"run log {source} not found", expected="a damaged run log", remedy="check the path")
    done = Recovered(target)
    with publish_file(target) as temporary:
        old = sqlite3.connect(f"file:{quote(str(source.resolve()))}?mode=ro", uri=True)
        old.text_factory = _text
        try:
            _require_run_log(source, old)
            new = open_log(temporary)
            try:
                _copy(old, new, done)
                new.execute("PRAGMA journal_mode = DELETE")
            finally:
                new.close()
        finally:
            old.close()
        if not done.kept.get("runs"):
            raise RunLogError(
                f"{source} holds no run that can be read",
                expected="at least one row of the table `runs`",
                actual=", ".join(done.unreadable) or "none",
                remedy="restore a backup, or evaluate again",
            )
    return done


def _require_run_log(path: Path, db: sqlite3.Connection) -> None:
    try:
        known = is_run_log(db)
    except sqlite3.Error as exc:
        raise RunLogError(
            f"{path} cannot be read at all",
            expected="an SQLite file with a readable first page",
            actual=str(exc),
            remedy="restore a backup, or evaluate again",
        ) from exc
    if not known:
        raise RunLogError(f"{path} is not a run log", expected="a file written by trimoe", remedy="check the path")


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, done: Recovered) -> None:
    chained = _chain(old)
    new.execute("PRAGMA foreign_keys = ON")
    with transaction(new):
        for table, columns in COLUMNS.items():
            done.kept[table] = 0
            there = _columns(old, table)
            if not there:
                done.unreadable.append(table)
                continue
            for values in _rows(old, table, [name for name in columns if name in there], done):
                if values is None or not _inserted(new, table, values):
                    done.lost[table] = done.lost.get(table, 0) + 1
                    continue
                done.kept[table] += 1
                if chained is not None and set(columns) <= there and digest(values) not in chained:
                    done.edited[table] = done.edited.get(table, 0) + 1
        _drop_outdated(new, done)
        adopted(new, f"recovered from a damaged log on {now()}")
        for (run_id,) in new.execute("SELECT id FROM runs").fetchall():
            detail = {"kept": done.kept, "lost": done.lost, "edited": done.edited, "unreadable": done.unreadable}
            new.execute(
                "INSERT INTO events (run_id, created, kind, detail) VALUES (?, ?, ?, ?)",
                (run_id, now(), "recovered", canonical_json(detail).decode()),
            )
            entered_last(new, "events")


def _drop_outdated(new: sqlite3.Connection, done: Recovered) -> None:
    """Results count rows that may be lost now; `trimoe rescore` and the next eval make new ones."""
    if done.lost.get("samples") or done.lost.get("scores") or "samples" in done.unreadable:
        done.lost["results"] = done.lost.get("results", 0) + done.kept.get("results", 0)
        done.kept["results"] = 0
        new.execute("DELETE FROM results")


def _inserted(new: sqlite3.Connection, table: str, values: dict[str, Any]) -> bool:
    names = ", ".join(values)
    try:
        found = new.execute(
            f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values())
        )
    except (sqlite3.IntegrityError, TrimoeError, ValueError):
        return False
    return found.rowcount == 1


def _rows(db: sqlite3.Connection, table: str, names: list[str], done: Recovered) -> Iterator[dict[str, Any] | None]:
    """Every row that can be read, None for one that can be seen and not read: from both ends, then one by one."""
    query = f"SELECT rowid, {', '.join(names)} FROM {table}"
    seen: set[int] = set()
    ends = []
    for order in ("ASC", "DESC"):
        last = None
        try:
            for row in db.execute(f"{query} ORDER BY rowid {order}"):
                last = row[0]
                if last not in seen:
                    seen.add(last)
                    yield _values(names, row[1:])
            return
        except sqlite3.Error:
            ends.append(last)
    done.unreadable.append(f"a part of {table}")
    low, high = ends
    if low is None and high is None:
        return
    low, high = (low or 0), (high if high is not None else (low or 0) + _PROBES)
    for number in range(low + 1, min(high, low + _PROBES)):
        if number in seen:
            continue
        try:
            row = db.execute(f"{query} WHERE rowid = ?", (number,)).fetchone()
        except sqlite3.Error:
            continue
        if row is not None:
            yield _values(names, row[1:])


def _values(names: list[str], row: tuple[Any, ...]) -> dict[str, Any] | None:
    values = dict(zip(names, row, strict=True))
    broken = any(isinstance(value, _Broken) for value in row)
    # `detail` is a JSON object in events only, which have no document.
    objects = _OBJECTS | ({"detail"} if "doc_id" not in values else set())
    return None if broken or not all(_is_object(values[name]) for name in objects & values.keys()) else values


def _is_object(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, TypeError, RecursionError):
        return False


class _Broken(str):
    """Text that is not UTF-8."""


def _text(stored: bytes) -> str:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return _Broken(stored.decode("utf-8", "replace"))


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    try:
        return {str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")}
    except sqlite3.Error:
        return set()


def _chain(db: sqlite3.Connection) -> set[str] | None:
    """Digests of all rows according to the old chain; None if there is none."""
    try:
        return newest_digests(db)
    except sqlite3.Error:
        return None
