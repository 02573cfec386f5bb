"""Running jobs: results, causes, limits, faults of ours, and that nothing outlives whoever asked."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trimoe.bench.bench import Doc
from trimoe.bench.catalog import find
from trimoe.errors import Refused
from trimoe.sandbox import (
    UNSAFE,
    Calls,
    Check,
    Limits,
    Outcome,
    Program,
    Sandbox,
    engines,
    pool,
    require_sandbox,
    run_jobs,
    using,
)

FAST = Limits(cpu=1, call_cpu=1, idle=2)
GOOD = Calls("def f(x):\n    return x + 1", "f", ((1,), (41,)), FAST)
SHELL = {"PATH": "/usr/bin:/bin"}


def one(source: str, *args: object, limits: Limits = FAST) -> Outcome:
    """Outcome of f(*args)."""
    (outcome,) = run_jobs([Calls(source, "f", (args,), limits)])
    return outcome


def test_results_come_in_the_order_of_the_jobs() -> None:
    jobs = [
        Calls(f"import time\ndef f(x):\n    time.sleep({(i % 3) / 50})\n    return x * {i}", "f", ((7,),))
        for i in range(12)
    ]
    seen: list[int] = []
    with Sandbox(workers=3) as sandbox:
        outcomes = sandbox.run(jobs, seen.append)
        assert sandbox.run([]) == []
    assert [outcome.values() for outcome in outcomes] == [[7 * i] for i in range(12)]
    assert seen == list(range(1, 13))


@pytest.mark.parametrize(
    ("source", "status", "word"),
    [
        ("def f(x)\n    return x", "error", "SyntaxError while loading"),
        ("def other(x):\n    return x", "error", "NameError"),
        ("def f(x):\n    return 1 / 0", "error", "ZeroDivisionError in call 1: division by zero"),
        ("import no_such_module", "error", "ModuleNotFoundError"),
        ("def f(x):\n    return object()", "error", "cannot be compared"),
        ("def f(x, y):\n    return x", "error", "TypeError"),
        ("class E(Exception):\n    def __str__(self): raise E\ndef f(x):\n    raise E", "error", "unprintable"),
        ("def f(x):\n    raise MemoryError", "memory", "MemoryError"),
        ("def f(x):\n    return [[x] for _ in iter(int, 1)]", "memory", ""),
    ],
)
def test_causes_are_told_apart(source: str, status: str, word: str) -> None:
    outcome = one(source, 1, limits=replace(FAST, memory=256 << 20, cpu=20, call_cpu=20))
    assert (outcome.status, word in outcome.detail) == (status, True), outcome


def test_what_a_candidate_says_of_its_failure_is_cut() -> None:
    outcome = one("def f(x):\n    raise type('E' * 100_000, (Exception,), {})('m' * 100_000)", 1)
    assert outcome.status == "error"
    assert len(outcome.detail) < 500


def test_results_before_a_failure_are_kept() -> None:
    (outcome,) = run_jobs([Calls("def f(x):\n    return 6 // x", "f", ((3,), (2,), (0,), (1,)), FAST)])
    assert (outcome.status, outcome.values()) == ("error", [2, 3])
    assert "in call 3" in outcome.detail


def test_arguments_are_fresh_for_each_call() -> None:
    (outcome,) = run_jobs([Calls("def f(x, seen=[]):\n    x.append(1)\n    return x", "f", (([],), ([],)), FAST)])
    assert outcome.values() == [[1], [1]]


def test_one_call_may_not_take_the_time_of_all() -> None:
    source = "import time\ndef f(x):\n    end = time.process_time() + x\n    while time.process_time() < end: pass"
    limits = replace(FAST, cpu=20, call_cpu=1)
    spread, single = run_jobs([Calls(source, "f", ((0.2,),) * 8, limits), Calls(source, "f", ((4,),), limits)])
    assert (spread.status, single.status) == ("ok", "timeout")


def test_the_place_is_clean_and_the_same_each_time() -> None:
    source = (
        "import os, sys\ndef f(x):\n    return [sorted(os.environ), os.listdir('.'), os.getcwd(), os.getuid(), "
        "[hash(w) for w in ('a', 'b')], sorted(os.listdir('/')), open('/etc/passwd').read(), __name__, sys.argv]"
    )
    first, second = (one(source, 1).values()[0] for _ in range(2))
    assert first == second
    assert first[1:4] == [[], "/tmp", 65534]
    of_python = {Path(sys.base_prefix).parts[1]}  # a Python below /root has its folder in there
    assert not ({"home", "root", "var", "run", "sys", "mnt", "work"} - of_python) & set(first[5])


def test_numpy_is_there() -> None:
    assert one("import numpy as np\ndef f(x):\n    return [int(np.arange(x).sum()), np.float64(2.5)]", 5).values() == [
        [10, 2.5]
    ]


def test_dataclasses_and_asyncio_work() -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport asyncio, threading\n"
        "@dataclass\nclass P:\n    x: int\nasync def g(x): return P(x).x\n"
        "def f(x):\n    t = threading.Thread(target=print); t.start(); t.join()\n    return asyncio.run(g(x))"
    )
    assert one(source, 3).values() == [3]


def test_a_check_reaches_functions_classes_and_objects() -> None:
    source = """
class Node:
    def __init__(self, v): self.v, self.next = v, None
def total(n): return n.v + (total(n.next) if n.next else 0)
def bad(): raise KeyError('k')
"""
    tests = """
a = Node(1); a.next = Node(2); a.next.v = 5
assert total(a) == 6 and a.next.v == 5
assert a != 1 and a == a
try: bad()
except KeyError as exc: assert 'k' in str(exc)
else: raise AssertionError('no KeyError')
"""
    (outcome,) = run_jobs([Check(source, "", tests, ("Node", "total", "bad"), FAST)])
    assert outcome.status == "ok", outcome


@pytest.mark.parametrize(
    ("source", "tests", "status", "word"),
    [
        ("def f(x): return 2", "assert f(1) == 3, 'no'", "wrong", "tests, line 1: AssertionError no"),
        ("def f(x): return None", "assert abs(f(1) - 1) < 1", "wrong", "TypeError"),
        ("def f(x): return 1 / 0", "assert f(1) == 3", "error", "ZeroDivisionError"),
        ("def f(x): assert False, 'mine'", "assert f(1) == 3", "error", "AssertionError during the tests: mine"),
        ("x = 1", "assert f(1) == 3", "error", "NameError"),
        ("def f(x) return", "assert f(1) == 3", "error", "SyntaxError"),
        ("def f(x):\n    while 1: pass", "assert f(1) == 3", "timeout", "CPU"),
        ("import time\ndef f(x): time.sleep(60)", "assert f(1) == 3", "timeout", "nothing"),
        ("import os\ndef f(x): os.kill(os.getpid(), 11)", "assert f(1) == 3", "error", "SIGSEGV"),
        ("def f(x): return bytearray(10 << 30)", "assert f(1) == 3", "memory", "MemoryError"),
        ("def f(x): return 3", "assert f(1) == 3\nundefined_name", "wrong", "NameError"),
        ("def f(x): return 3", "assert f(1 == 3", "harness", "SyntaxError"),
        ("def f(x): return 3", "assert f(lambda: 1) == 3", "wrong", "cannot travel"),
    ],
)
def test_verdicts_of_a_check(source: str, tests: str, status: str, word: str) -> None:
    (outcome,) = run_jobs([Check(source, "", tests, ("f",), FAST)])
    assert (outcome.status, word in outcome.detail) == (status, True), outcome


def test_a_broken_setup_is_ours() -> None:
    (outcome,) = run_jobs([Check("def f(x): return 3", "raise SystemExit", "assert f(1) == 3", ("f",), FAST)])
    assert outcome.status == "harness"


def test_programs_run_step_by_step() -> None:
    files = {"a/one.txt": "eins\n", "run.sh": "cat a/one.txt; echo two >&2; pwd; id -u; exit 3"}
    steps = (("/bin/sh", "-c", "echo built > made"), ("/bin/sh", "run.sh"), ("/bin/sh", "-c", "echo never"))
    (outcome,) = run_jobs([Program(files, steps, SHELL, FAST)], proc=True)
    assert (outcome.status, [step.exit for step in outcome.steps]) == ("error", [0, 3])
    assert outcome.steps[1].out == "eins\n/tmp\n65534\n"
    assert outcome.steps[1].err == "two\n"


@pytest.mark.parametrize(
    ("script", "status", "word"),
    [
        ("yes", "error", "bytes of results"),
        ("sleep 60", "timeout", "nothing"),
        ("while :; do :; done", "timeout", "CPU"),
        ("kill -11 $$", "error", "SIGSEGV"),
        ("sleep 60 & exec >/dev/null; sleep 0.1", "ok", ""),
        ("kill -9 1; kill -9 -1; echo alive", "ok", ""),
        ("cat /proc/1/environ /proc/1/mem && exit 0; ls /proc/1/fd && exit 0; exit 7", "error", "7"),
    ],
)
def test_commands_are_contained(script: str, status: str, word: str) -> None:
    job = Program({"run.sh": script}, (("/bin/sh", "run.sh"),), SHELL, FAST)
    bad, good = run_jobs([job, replace(job, files={"run.sh": "ls /tmp; ls -d /proc/[0-9]* | wc -l"})], proc=True)
    assert (bad.status, word in bad.detail) == (status, True), bad
    assert good.steps[0].out.splitlines()[0] == "run.sh"  # the sample's own file and no other
    assert int(good.steps[0].out.splitlines()[1]) <= 4  # init, sh, ls, wc


def test_a_command_that_does_not_exist_is_ours() -> None:
    (outcome,) = run_jobs([Program({}, (("/no/such/tool",),), SHELL, FAST)])
    assert (outcome.status, "/no/such/tool" in outcome.detail) == ("harness", True)


def test_a_lost_worker_costs_one_more_try(monkeypatch: pytest.MonkeyPatch) -> None:
    run, lost = pool.Worker.run, []

    def killed_once(self: pool.Worker, job: Calls) -> Outcome:
        if not lost:
            lost.append(self)
            os.killpg(self._process.pid, signal.SIGKILL)
        return run(self, job)

    monkeypatch.setattr(pool.Worker, "run", killed_once)
    assert [o.status for o in run_jobs([GOOD] * 3)] == ["ok"] * 3
    assert lost


def test_a_sandbox_that_keeps_failing_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: pool.Worker, job: Calls) -> Outcome:
        raise pool.WorkerLost("lost on purpose")

    monkeypatch.setattr(pool.Worker, "run", lose)
    outcomes = run_jobs([GOOD, GOOD])
    assert [(o.status, o.detail) for o in outcomes] == [("harness", "lost on purpose")] * 2
    bench = find(["tiny-code"])[0]
    doc = Doc("d", "", "", {"entry_point": "solve", "tests": [["1", "2"]]})
    (verdict,) = bench.judge([("```python\ndef solve(x): return 2\n```", "stop", doc)])
    assert (verdict.correct, verdict.cause) == (None, "harness error")


def test_a_worker_that_cannot_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_BOOT", "import sys; sys.exit('broken {!r}')")
    with pytest.raises(Refused, match="broken"):
        run_jobs([GOOD])
    with pytest.raises(Refused, match="--sandbox docker"):
        require_sandbox()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can stand in for a kernel that forbids namespaces")
def test_where_namespaces_are_forbidden_it_is_refused_with_the_remedy() -> None:
    script = """
import os, ctypes
uid = os.getuid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
open('/proc/self/setgroups', 'w').write('deny')
open('/proc/self/uid_map', 'w').write(f'0 {uid} 1')
open('/proc/self/gid_map', 'w').write(f'0 {os.getgid()} 1')
open('/proc/sys/user/max_user_namespaces', 'w').write('0')
from trimoe.errors import Refused
from trimoe.sandbox import Calls, run_jobs
try:
    run_jobs([Calls('def f(x): return x', 'f', ((1,),))])
except Refused as exc:
    print(exc)
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=_python_path()
    )
    assert "unshare(user" in answer.stdout
    assert "user.max_user_namespaces" in answer.stdout


def _python_path() -> dict[str, str]:
    import trimoe

    return {**os.environ, "PYTHONPATH": str(Path(trimoe.__file__).parents[1])}


def test_without_a_sandbox_it_still_runs_and_cleans_up() -> None:
    left = """
import os
def f(x):
    if os.fork() == 0:
        os.setsid()
        os.execv('/bin/sleep', ['{mark}', '600'])
    open('x', 'w').close()
    return [x + 1, os.getcwd()]
"""
    mark = f"trimoe-left-{os.getpid()}"
    with using(UNSAFE):
        outcomes = run_jobs([Calls(left.replace("{mark}", mark), "f", ((1,),), FAST), GOOD])
        (checked,) = run_jobs([Check("def f(x): return 3", "", "assert f(1) == 3", ("f",), FAST)])
    assert [o.status for o in (*outcomes, checked)] == ["ok"] * 3
    assert outcomes[0].values()[0][0] == 2
    assert not Path(outcomes[0].values()[0][1]).exists()
    assert not [p for p in _commands().values() if mark in p]


def _commands() -> dict[int, str]:
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_whoever_started_it(number: int, tmp_path: Path) -> None:
    script = """
import signal
from trimoe.sandbox import Calls, Limits, Sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born with it ignored
with Sandbox(workers=2) as sandbox:
    sandbox.start()
    print('up', flush=True)
    sandbox.run([Calls('def f(x):\\n    while True: pass', 'f', ((1,),), Limits(cpu=60, call_cpu=60))] * 2)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_python_path()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    idle, limit = len(_below(process.pid)), time.monotonic() + 60
    assert idle >= 2
    while len(workers := _below(process.pid)) < idle + 2:  # each worker forks for its sample
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(60)
    process.stdout.close()
    deadline = time.monotonic() + 60
    while (left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _below(root: int) -> set[int]:
    """Every descendant of a process."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    below: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in below | {root}} - below:
        below |= more
    return below


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user here already")
def test_an_ordinary_user_has_the_same_sandbox() -> None:
    python = Path("/usr/bin/python3")
    if (
        not python.exists()
        or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode
    ):
        pytest.skip("needs a Python 3.11 that everyone may run at /usr/bin/python3")
    script = f"""
import json, sys
sys.path.insert(0, {_python_path()["PYTHONPATH"]!r})
from trimoe.sandbox import Calls, Check, Limits, Program, run_jobs
see = "import os\\ndef f(x): return [x, os.getuid(), os.listdir('/tmp'), *map(os.path.exists, ('/root', '/home'))]"
jobs = [Calls(see, 'f', ((1,),)),
        Check('def f(x): return 3', '', 'assert f(1) == 3', ('f',)),
        Calls("def f(x):\\n    while 1: pass", 'f', ((1,),), Limits(cpu=1)),
        Program({{}}, (('/usr/bin/id', '-u'),), {{}})]
outcomes = run_jobs(jobs, proc=True)
print(json.dumps([[o.status, o.values() if o.lines else None, [s.out for s in o.steps]] for o in outcomes]))
"""
    answer = subprocess.run(
        [python, "-B", "-"],
        input=script,
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
    )
    assert answer.returncode == 0, answer.stderr
    calls, check, spin, program = json.loads(answer.stdout)
    assert calls == ["ok", [[1, 65534, [], False, False]], []]
    assert [check[0], spin[0], program] == ["ok", "timeout", ["ok", None, ["65534\n"]]]
