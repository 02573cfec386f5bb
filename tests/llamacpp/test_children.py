"""Children of trimoe die with it, however it dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.blueprints import real_width, write_hollow
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")


def running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(what: Callable[[], object]) -> None:
    limit = time.monotonic() + 120
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


def test_the_command_runs_as_it_is(tmp_path: Path) -> None:
    answer = subprocess.run(
        bound(["/bin/sh", "-c", 'echo "$1"; pwd; exit 7', "x", "a b"]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout) == (7, f"a b\n{tmp_path}\n")


def test_killed_with_its_parent() -> None:
    code = (
        "import subprocess; from trimoe.llamacpp.children import bound;"
        "p = subprocess.Popen(bound(['/bin/sleep', '600'])); print(p.pid, flush=True); p.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(lambda: command_of(child).startswith("/bin/sleep"))
    assert running(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not running(child))


def test_without_its_parent_it_does_not_start(tmp_path: Path) -> None:
    words = bound(["/bin/sh", "-c", f"touch {tmp_path / 'ran'}"])
    words[words.index(str(os.getpid()))] = "1"  # a parent that is gone by now
    assert subprocess.run(words, check=False).returncode == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_no_llama_quantize_survives_trimoe(llamacpp: LlamaCpp, tmp_path: Path) -> None:
    """SIGKILL to trimoe alone, not to its group, while llama-quantize works in a thread's charge."""
    hollow = write_hollow(tmp_path / "x-BF16.gguf", real_width(2, 16))
    (tmp_path / "ladder.yaml").write_text("smoke: null\n")
    command = [
        sys.executable,
        "-m",
        "trimoe",
        "quantize",
        hollow,
        "--tiers",
        "Q4_K_M",
        "-o",
        tmp_path / "out",
        "-t",
        "1",
        "--ladder",
        tmp_path / "ladder.yaml",
    ]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found: list[int] = []

    def at_work() -> bool:
        assert parent.poll() is None
        tasks = [int(t.name) for t in Path(f"/proc/{parent.pid}/task").iterdir()]
        every = [int(c) for t in tasks for c in Path(f"/proc/{parent.pid}/task/{t}/children").read_text().split()]
        found[:] = [
            pid
            for pid in every
            if "llama-quantize" in command_of(pid).split(" ")[0] and "--dry-run" not in command_of(pid)
        ]
        return bool(found)

    wait_for(at_work)
    os.kill(found[0], signal.SIGSTOP)  # so that it cannot end by itself before its parent is killed
    assert running(found[0])
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not running(found[0]))
    assert not list((tmp_path / "out").glob("*Q4_K_M.gguf"))
