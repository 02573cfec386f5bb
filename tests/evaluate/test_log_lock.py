"""Of two evaluations of one run in one log, the second is told who has it; nothing is asked twice."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_faults import docs, run

from helpers.evaluation import rescored
from helpers.fault_server import FaultServer
from trimoe.errors import Refused
from trimoe.evaluate.log.lock import locked
from trimoe.evaluate.log.records import Run
from trimoe.evaluate.log.run_log import RunLog

ONE = Run(1, "m", "b", "f", "a" * 64, "", {}, {})
OTHER = Run(2, "n", "b", "g", "b" * 64, "", {}, {})
HOLD = """
import sys
from pathlib import Path
from trimoe.evaluate.log.lock import locked
from trimoe.evaluate.log.records import Run
with locked(Path(sys.argv[1]), [Run(1, "m", "b", "f", "a" * 64, "", {}, {})]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(log: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_has_the_run(tmp_path: Path) -> None:
    log = tmp_path / "r.db"
    with holder(log) as process:
        words = rf"(?s)run m on b .* is being evaluated already.*process {process.pid} on "
        with pytest.raises(Refused, match=words), locked(log, [OTHER, ONE]):
            pass
        with locked(log, [OTHER]), locked(tmp_path / "another.db", [ONE]):
            pass  # other runs and other logs are free
        process.communicate("")
    with locked(log, [ONE, ONE]):  # one run under two names
        assert len(list(tmp_path.glob(".r.db.*.lock"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_evaluation_leaves_no_lock(tmp_path: Path) -> None:
    log = tmp_path / "r.db"
    process = holder(log)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob(".r.db.*.lock"))  # the file is there, and no lock on it
    with locked(log, [ONE]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_is_removed_while_it_is_opened_is_not_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, opens = tmp_path / "r.db", []
    real = os.open

    def removing(path: Path, *more: int) -> int:
        handle = real(path, *more)
        opens.append(path)
        if len(opens) == 1:
            Path(path).unlink()  # as the holder does when it ends at this moment
        return handle

    monkeypatch.setattr(os, "open", removing)
    with locked(log, [ONE]):
        assert len(opens) == 2
        assert Path(opens[1]).exists()


def test_a_lock_file_that_cannot_be_written_or_removed_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "r.db"

    def failing(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        patch.setattr(os, "unlink", failing)
        words = "another process, which has just begun"
        with locked(log, [ONE]), pytest.raises(Refused, match=words), locked(log, [ONE]):
            pass
    with locked(log, [ONE]):
        pass


def test_two_evaluations_at_once_ask_once(tmp_path: Path) -> None:
    log, rows = tmp_path / "r.db", docs(12)
    replies = {doc.prompt: doc.reference for doc in rows}
    begun, done, refused = threading.Event(), [], []
    with FaultServer(replies, {}, delay=0.2) as at:

        def first() -> None:
            begun.set()
            done.append(run(at, log, 12))

        thread = threading.Thread(target=first)
        thread.start()
        begun.wait()
        while not list(tmp_path.glob(".r.db.*.lock")) and thread.is_alive():
            pass
        with pytest.raises(Refused, match=f"process {os.getpid()}") as caught:
            run(at, log, 12)
        refused.append(caught.value)
        with pytest.raises(Refused, match="is being evaluated already"):
            rescored(log)
        thread.join()
        assert at.asked.total() == 12
        assert run(at, log, 12) == done[0]  # afterwards, nothing is missing
        assert at.asked.total() == 12
    with RunLog(log, create=False) as opened:
        assert opened.verify() == []
        assert len(opened.attempts(opened.runs()[0])) == 12
