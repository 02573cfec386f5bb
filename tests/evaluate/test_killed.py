"""An evaluation that is killed repeatedly: nothing stored is lost, changed, or requested twice."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.fault_server import FaultServer
from helpers.signals import TESTS
from trimoe.bench.catalog import find
from trimoe.evaluate.log.run_log import RunLog

BENCHES = ("tiny-choice", "tiny-math", "tiny-format", "tiny-text", "tiny-story")
ROWS, KILLS = 500, 25
SCRIPT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from helpers.signals import signal_at
from trimoe.evaluate.request_limits import RequestLimits
from trimoe.serve.probe import connect
from trimoe.evaluate.evaluate import evaluate
if len(sys.argv) > 4:
    signal_at(int(sys.argv[4]), function="trimoe.evaluate.log.run_log:RunLog.arrived", later=int(sys.argv[5]))
limits = RequestLimits(8)
evaluate(connect(sys.argv[1]), bench=sys.argv[3], log=sys.argv[2], name="m", request_limits=limits, preflight=False)
"""


def command(at: FaultServer, log: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, at.url, str(log), ",".join(BENCHES)]


def stored_prompts(log: Path) -> list[str]:
    """Stored prompts as another process sees them."""
    if not log.is_file():
        return []
    db = sqlite3.connect(f"file:{log}?mode=ro", uri=True, timeout=30)
    try:
        return [prompt for (prompt,) in db.execute("SELECT prompt FROM samples")]
    except sqlite3.OperationalError:
        return []  # not created yet
    finally:
        db.close()


def contents(log: Path) -> list[Any]:
    """Everything except times: runs, results, samples, verdicts, raw replies without ids (they count requests)."""
    with RunLog(log, create=False) as opened:
        assert opened.verify() == []
        found: list[Any] = []
        for run in opened.runs():
            found += [run, opened.results(run)]
            for scored in opened.samples(run):
                raw = json.loads(opened.raw(run, scored.sample.doc_id) or b"null")
                raw.pop("id")
                found.append((scored, raw))
        return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_25_times_equals_undisturbed(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm.db", tmp_path / "rough.db"
    replies = {doc.prompt: doc.reference for bench in find(BENCHES) for doc in bench.docs()}
    draw = random.Random(7)
    # every tenth reply is wrong, so that verdicts differ, too
    script = {prompt: ["wrong"] for prompt in draw.sample(sorted(replies), ROWS // 10)}
    with FaultServer(replies, script, delay=0.02) as at:
        subprocess.run(command(at, calm), check=True, timeout=300)
        assert len(stored_prompts(calm)) == ROWS
        at.asked.clear()
        kills = 0
        before: dict[str, int] = {}
        for _ in range(KILLS):
            moment = [str(draw.randrange(1, 5)), str(draw.randrange(400))]
            process = subprocess.run([*command(at, rough), *moment], check=False, timeout=120)
            kills += process.returncode == -signal.SIGKILL
            at.settle()
            asked_when_stored = {prompt: at.asked[prompt] for prompt in stored_prompts(rough)}
            again = {p for p, count in before.items() if asked_when_stored[p] != count}
            assert not again, "asked for again after it was stored"
            before = asked_when_stored
        assert kills == KILLS
        subprocess.run(command(at, rough), check=True, timeout=300)
        assert all(at.asked[prompt] == count for prompt, count in before.items())
        # asked again: the eight under way at each kill, and what had arrived while the last replies were written
        assert sum(at.asked.values()) <= ROWS + KILLS * 2 * 8
        done = at.asked.copy()
        subprocess.run(command(at, rough), check=True, timeout=300)
        assert at.asked == done
    assert contents(rough) == contents(calm)
