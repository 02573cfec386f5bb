"""Connections to run logs whose errors are trimoe's: a full disk, a lock, a damaged page or text that is not UTF-8.

Invariants: every statement and every fetched row goes through `log_error`, so no reader of a log has to catch SQLite's
errors. Misuse of a connection (a closed one, a value that its column refuses) is a bug and stays an error of SQLite.
"""

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from trimoe.errors import MissingPrerequisite, Refused, RunLogError, TrimoeError

P = ParamSpec("P")
R = TypeVar("R")


def log_error(path: Path | str, exc: sqlite3.Error) -> TrimoeError:
    """What an error of SQLite means for the user of the log `path`."""
    name, said = getattr(exc, "sqlite_errorname", None) or "", str(exc)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM")):
        return MissingPrerequisite(
            f"run log {path} cannot be written or read",
            expected="free space, memory and a working disk",
            actual=said,
            remedy="free some space and run the same command again; stored replies are kept",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return RunLogError(
            f"run log {path} cannot be opened or written",
            expected="a file in a folder that you may write",
            actual=said,
            remedy="check the permissions, or choose another --log",
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Refused(
            f"run log {path} is in use by another process",
            expected="a free log",
            actual=said,
            remedy="wait until the other process is finished and run the same command again",
        )
    if name == "SQLITE_NOTADB":
        return RunLogError(
            f"{path} is not a readable run log",
            expected="an SQLite file written by trimoe",
            actual=said,
            remedy="check the path, or choose another --log",
        )
    return RunLogError(
        f"run log {path} is damaged",
        expected="a sound SQLite file with the tables of a run log",
        actual=said,
        remedy=f"`trimoe log recover {path} -o NEW.db` writes what can still be read into a new log",
    )


class LogConnection(sqlite3.Connection):
    """A connection that knows its log."""

    path: Path | str = "?"

    def cursor(self, factory: Any = None) -> Any:
        """A cursor with trimoe's errors."""
        made = super().cursor(_Cursor)
        made.path = self.path
        return made

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run one statement."""
        cursor: sqlite3.Cursor = self.cursor()
        return cursor.execute(sql, parameters)


class _Cursor(sqlite3.Cursor):
    path: Path | str = "?"

    def _translated(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            raise
        except sqlite3.Error as exc:
            raise log_error(self.path, exc) from exc

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        self._translated(super().execute, sql, parameters)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        self._translated(super().executemany, sql, parameters)
        return self

    def fetchone(self) -> Any:
        return self._translated(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._translated(super().fetchall)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.Error as exc:
            raise log_error(self.path, exc) from exc


def connected(address: Path | str, path: Path, *, uri: bool = False, timeout: float = 30) -> LogConnection:
    """An open connection in autocommit mode. Raises `TrimoeError` where SQLite cannot open the file."""
    try:
        db = sqlite3.connect(address, uri=uri, timeout=timeout, isolation_level=None, factory=LogConnection)
    except sqlite3.Error as exc:
        raise log_error(path, exc) from exc
    db.path = path
    return db
