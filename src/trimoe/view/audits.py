"""Audit of a run for its page: the checks of `trimoe audit`, without writing to the log.

A log with an older schema is copied to a temporary directory and migrated there. Invariants: checks, thresholds and
verdict are those of the audit; a run that changed is audited again.
"""

import sqlite3
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from trimoe.errors import RunLogError
from trimoe.evaluate.log.schema import is_current, open_readonly
from trimoe.judge.audit.audit import AuditOptions, audit_runs
from trimoe.judge.audit.result import Audit, RunAudit
from trimoe.view.catalog import Shown


@lru_cache(maxsize=64)  # half a second for thousands of long replies; a run that changed is another object
def audit_of(shown: Shown) -> RunAudit | None:
    """The audit of a run; None if the log no longer contains it. Raises `RunLogError` if the log cannot be read, or an
    older one cannot be copied."""
    wanted = AuditOptions(name=shown.run.name, bench=shown.run.bench)
    try:
        with closing(open_readonly(shown.log.path)) as log:
            made = audit_runs(shown.log.path, wanted, readonly=True) if is_current(log) else _of_a_copy(log, wanted)
    except sqlite3.Error as exc:
        raise RunLogError(
            f"{shown.log.path} could not be audited",
            actual=str(exc),
            remedy="check the free disk space, or run trimoe audit",
        ) from exc
    return next((one for one in made if one.run == shown.run.identity), None)


def _of_a_copy(log: sqlite3.Connection, wanted: AuditOptions) -> Audit:
    with TemporaryDirectory(prefix="trimoe-view-") as folder:
        copy = Path(folder) / "log.db"
        with closing(sqlite3.connect(copy)) as target:
            log.backup(target)
        return audit_runs(copy, wanted)
