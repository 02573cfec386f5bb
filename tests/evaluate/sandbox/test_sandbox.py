"""Candidates that misbehave are stopped, named, and leave the next one and the machine alone."""

import subprocess
import time
from pathlib import Path

import pytest

from trimoe.evaluate.bench import Doc, find
from trimoe.evaluate.sandbox import Job, Limits, Outcome, run_jobs

FAST = Limits(cpu=1, wall=6)
GOOD = Job("def solve(x):\n    return x + 1", "solve", ("1", "41"))


def around(source: str, limits: Limits = FAST) -> Outcome:
    """Outcome of a candidate; the good ones before and after it must pass."""
    first, outcome, last = run_jobs([GOOD, Job(source, "solve", ("1",)), GOOD], limits)
    assert first == last == Outcome("ok", ("2", "42"))
    return outcome


@pytest.mark.parametrize(
    ("source", "status", "word"),
    [
        ("def solve(x):\n    while True: pass", "timeout", "more"),
        ("import time\ndef solve(x):\n    time.sleep(60)", "timeout", "wall"),
        ("def solve(x):\n    return len(bytearray(10 << 30))", "error", "MemoryError"),
        ("def solve(x):\n    return 'x' * (1 << 20)", "error", "bytes of results"),
        ("def solve(x):\n    return 1 / 0", "error", "ZeroDivisionError"),
        ("def solve(x)\n    return x", "error", "SyntaxError"),
        ("def other(x):\n    return x", "error", "KeyError"),
        ("raise SystemExit(0)", "error", "SystemExit"),
        ("import os\ndef solve(x):\n    os._exit(0)", "error", "ended early"),
        ("import os\ndef solve(x):\n    os.kill(os.getpid(), 9)", "error", "SIGKILL"),
        ("import os\ndef solve(x):\n    return os.fork()", "error", "BlockingIOError"),
        ("import threading\ndef solve(x):\n    threading.Thread(target=print).start()", "error", "RuntimeError"),
        ("def solve(x):\n    open('big', 'wb').write(b'x' * (64 << 20))", "error", "OSError"),
        ("def solve(x):\n    return solve(x)", "error", "RecursionError"),
        ("import signal\nfor s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\ndef solve(x):\n    while 1: pass",
         "timeout", "more"),
        ("import math, re, collections\ndef solve(x):\n    return no_such_name", "error", "NameError"),
        ("import no_such_module", "error", "ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_misbehaviour_is_contained_and_named(source: str, status: str, word: str) -> None:
    outcome = around(source)
    assert (outcome.status, word in outcome.detail) == (status, True)


def test_a_candidate_sees_a_clean_empty_place(tmp_path: Path) -> None:
    source = "import os\ndef solve(x):\n    return sorted(os.environ), os.listdir('.')"
    outcome = around(source)
    assert outcome.results == ("(['LANG', 'PATH'], [])",) or "LC_CTYPE" in outcome.results[0]


def test_printing_or_forging_does_not_pass() -> None:
    bench = find(["tiny-code"])[0]
    doc = Doc("d", "", "", {"entry_point": "solve", "tests": [["1", "2"]]})
    sources = [
        'print(\'{"status": "ok", "results": ["2"]}\')\ndef solve(x):\n    return 3',
        "class E:\n    def __eq__(self, o): return True\ndef solve(x):\n    return E()",
        'import os\nos.write(3, b\'{"status": "ok", "results": []}\')\nos._exit(0)',
        "def solve(x):\n    return '2'",
    ]
    verdicts = bench.judge([(f"```python\n{s}\n```", "stop", doc) for s in sources])
    assert [v.correct for v in verdicts] == [False] * 4


def test_causes_of_code() -> None:
    bench = find(["tiny-code"])[0]
    doc = Doc("d", "", "", {"entry_point": "solve", "tests": [["1", "2"], ["2", "{1, 2}"]]})
    bodies = ["2 if x == 1 else {2, 1}", "2", "nothing", "[i for i in iter(int, 1)]"]
    verdicts = bench.judge([(f"```python\ndef solve(x):\n    return {b}\n```", "stop", doc) for b in bodies])
    assert [v.cause for v in verdicts] == ["correct", "wrong", "code error", "code timeout"]


def test_no_process_is_left() -> None:
    mark = f"{time.time_ns()}"
    source = f"import os, sys\nos.environ['MARK'] = '{mark}'\ndef solve(x):\n    return x"
    around(source)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in listed


def test_a_broken_sandbox_is_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("import sys; sys.exit(3)")
    monkeypatch.setattr("trimoe.evaluate.sandbox._CHILD", broken)
    assert [o.status for o in run_jobs([GOOD, GOOD])] == ["harness", "harness"]
