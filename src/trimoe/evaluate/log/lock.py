"""A lock on the runs of a log, so that two evaluations do not ask for the same replies twice.

The lock is a file beside the log, `.LOG.RUN.lock`, that the system unlocks when its process ends, however it ends. It
names its process, so whoever comes second is told who has it. Runs of other models or benches in the same log are not
locked. Not guaranteed: locks between machines on a network file system without `flock`.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from trimoe.errors import Refused
from trimoe.evaluate.log.records import Run
from trimoe.evaluate.log.schema import now

_DIGITS = 16  # of a run's identity, in the name of the lock file


@contextmanager
def locked(log: Path, runs: Sequence[Run]) -> Iterator[None]:
    """Hold the locks of these runs. `Refused`, which names the process, if another evaluation holds one."""
    with ExitStack() as held:
        for run in {run.identity: run for run in runs}.values():
            held.enter_context(_locked(log, run))
        yield


@contextmanager
def _locked(log: Path, run: Run) -> Iterator[None]:
    path = log.with_name(f".{log.name}.{run.identity[:_DIGITS]}.lock")
    handle = _opened(path)
    while handle is not None and not _same_file(handle, path):  # its holder removed it while it was opened
        os.close(handle)
        handle = _opened(path)
    if handle is None:
        raise Refused(
            f"run {run.name} on {run.bench} in {log} is being evaluated already",
            expected="one evaluation of a run at a time",
            actual=_holder(path),
            remedy="wait until it is finished and run the same command again, which asks only for what is missing; "
            "or use another --log",
        )
    try:
        with suppress(OSError):  # on a full disk the lock holds without the name of its process
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now()}).encode())
        yield
    finally:
        try:
            with suppress(OSError):  # a file that stays is no lock
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _opened(path: Path) -> int | None:
    """The locked file, or None if another process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(handle)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has just begun"
