"""Hostile programs are contained: nothing outside is touched, the next sample is as good as the first, none stays."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.hostile import PATIENT, PROGRAMS, Hostile
from trimoe.sandbox import Calls, Check, Outcome, Sandbox, engines

SEES = """
import os, socket
def f(x):
    try:
        socket.socket(socket.AF_UNIX).connect('\\0left')
    except OSError as exc:
        return [x + 1, os.listdir('.'), type(exc).__name__]
"""
GOOD = Calls(SEES, "f", ((1,),), PATIENT)
NEEDLE = "what-the-tests-expect"
MARK = f"trimoe-hostile-{os.getpid()}"


def marked_processes() -> list[int]:
    """Processes that were born with our mark in their environment, or that took it as their name."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        for part in ("cmdline", "environ"):
            try:
                if MARK.encode() in Path(f"/proc/{entry}/{part}").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue  # it ended, or belongs to somebody else
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, Outcome]]:
    """Outcome of every program and of the good sample that the same worker ran next."""
    secret = tmp_path_factory.mktemp("home") / "secret"
    secret.write_text("a secret")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0)
    words = {
        "{secret}": str(secret),
        "{checkout}": str(Path(__file__).parents[2]),
        "{pid}": str(os.getpid()),
        "{port}": str(listener.getsockname()[1]),
        "{needle}": NEEDLE,
        "{mark}": MARK,
    }
    jobs = []
    for program in PROGRAMS:
        source = program.source
        for word, value in words.items():
            source = source.replace(word, value)
        jobs += [Calls(source, "f", ((1,),), program.limits), GOOD]
    with pytest.MonkeyPatch.context() as patch, Sandbox(workers=1) as sandbox:
        patch.setenv("TRIMOE_SECRET_TOKEN", "a secret")
        patch.setitem(engines._ENVIRONMENT, "MARK", MARK)
        sandbox.start()
        assert marked_processes()  # so that finding none later means something
        results = sandbox.run(jobs)
    connected = not _nothing_came(listener)
    listener.close()
    assert not connected
    assert secret.read_text() == "a secret"
    return {p.name: (results[2 * i], results[2 * i + 1]) for i, p in enumerate(PROGRAMS)}


def _nothing_came(listener: socket.socket) -> bool:
    try:
        listener.accept()
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_contained(program: Hostile, outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    outcome, after = outcomes[program.name]
    assert program.contained(outcome), (outcome.status, outcome.detail, outcome.lines)
    assert after.status == "ok", after
    assert after.values() == [[2, [], "ConnectionRefusedError"]]


def test_there_are_enough_of_them() -> None:
    assert len(PROGRAMS) >= 25
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


def test_no_process_is_left(outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    assert marked_processes() == []


def test_no_core_file_is_left(outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    assert not list(Path.cwd().glob("core*"))


FORGE = """
import os
def say(line):
    for fd in range(3, 64):
        try: os.write(fd, line)
        except OSError: pass
"""
CHEATS = {
    "equality": """
class Any:
    def __eq__(self, other): return True
    __hash__ = None
def f(x): return Any()
""",
    "equal number": """
class Int(int):
    def __eq__(self, other): return True
    __hash__ = None
def f(x): return Int(7)
""",
    "equal list": """
class L(list):
    def __eq__(self, other): return True
    __iter__ = None
def f(x): return L()
""",
    "marker": 'print(\'{"verdict": "ok"}\')\ndef f(x): return 7',
    "leave": "import os\nos._exit(0)",
    "leave later": "import os\ndef f(x): os._exit(0)",
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "patch": """
import builtins
builtins.AssertionError = ValueError
builtins.abs = builtins.len = lambda *a: 0
def f(x): return 7
""",
    "forge": FORGE + 'say(b\'{"verdict": "ok", "detail": ""}\\n\')\ndef f(x): return 7',
    "forge and leave": FORGE + 'say(b\'{"verdict": "ok", "detail": ""}\\n\')\nos._exit(0)',
    "answer oddly": FORGE + 'say(b\'{"value": {"$": ["ndarray", ["|O8", []]]}}\\n\')\ndef f(x): return 7',
    "redefine the test": "def check(candidate): pass\ndef helper(): return 0\ndef f(x): return 7",
    "read the tests": """
import gc, sys
def f(x):
    return next((o for o in gc.get_objects() if isinstance(o, (str, bytes)) and 'what-the-' in str(o)), None)
""",
    "assertion": "def f(x): raise AssertionError('a contract of mine')",
    "exit code": "class E(BaseException): pass\ndef f(x): raise E",
    "fork the answer": "import os\ndef f(x):\n    os.fork()\n    return 7",
}
TESTS = """
def check(candidate):
    assert candidate(1) == 'what-the-' + 'tests-expect', 'not it'
    assert helper() == 1
check(f)
"""


def test_no_cheat_passes_and_an_honest_candidate_does() -> None:
    setup = "def helper(): return 1"
    honest = Check("def f(x): return 'what-the-tests-expect'", setup, TESTS, ("f",), PATIENT)
    jobs = [replace(honest, source=source) for source in CHEATS.values()]
    with Sandbox() as sandbox:
        first, *cheated, last = sandbox.run([honest, *jobs, honest])
    assert first.status == last.status == "ok", (first, last)
    statuses = dict(zip(CHEATS, cheated, strict=True))
    assert {name: o.status for name, o in statuses.items() if o.status not in ("wrong", "error")} == {}
    assert statuses["assertion"].status == "error"  # its own assertion, not the tests'
    assert statuses["equality"].status == statuses["redefine the test"].status == "wrong"
