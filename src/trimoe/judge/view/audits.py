"""The audit of a run, for its page: the checks of `trimoe audit`, on a copy of the log as it is at that moment.

The audit opens a log to write (it would migrate an older one); the viewer never writes to a log. So the log is copied
into a temporary directory, which also gives one consistent picture of a log that is being written.
Invariants: the checks, thresholds and verdict are the audit's own; a run is audited again when it has changed.
"""

import sqlite3
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from trimoe.evaluate.log_schema import open_readonly
from trimoe.judge.audit import RunAudit, Wanted, audit
from trimoe.judge.view.catalog import Shown


@lru_cache(maxsize=64)  # seconds for thousands of long replies; a run that changed is another object
def audit_of(shown: Shown) -> RunAudit | None:
    """The audit of a run; None if the log does not have it any more."""
    with TemporaryDirectory(prefix="trimoe-view-") as folder:
        copy = Path(folder) / "log.db"
        with closing(open_readonly(shown.log.path)) as log, closing(sqlite3.connect(copy)) as target:
            log.backup(target)
        wanted = Wanted(name=shown.run.name, bench=shown.run.bench)
        return next((one for one in audit(copy, wanted) if one.run == shown.run.identity), None)
