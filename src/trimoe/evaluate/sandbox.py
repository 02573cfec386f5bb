"""Runs generated Python in a child process with limits.

Contained: CPU time, address space, file size, number of open files, core dumps, wall time, output size; an empty
scratch directory as cwd and home; a clean environment; its own session, killed as a group; isolated mode without user
packages. NOT contained (until namespaces are used): reading world-readable files, the network, other processes of the
same user. Run models you do not trust on a machine you can lose.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

CPU_SECONDS, WALL_SECONDS, MEMORY, FILE_SIZE = 4, 10.0, 512 << 20, 1 << 20


@dataclass(frozen=True)
class Outcome:
    """`passed` is None when the harness itself failed."""

    passed: bool | None
    cause: str
    detail: str = ""


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def run_python(source: str) -> Outcome:
    """Run a program; it passes when it reaches its end. An exit before that is not a pass, whatever its status."""
    done = f"done-{os.urandom(8).hex()}"
    with tempfile.TemporaryDirectory(prefix="trimoe-") as scratch:
        program = f"{source}\nimport sys as _s\n_s.__stdout__.write({done!r})\n_s.__stdout__.flush()\n"
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program], cwd=scratch, env={"HOME": scratch, "PATH": "/usr/bin:/bin"},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                preexec_fn=_limit,
            )  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            if isinstance(exc, ValueError):  # an embedded NUL: such a program cannot run anywhere
                return Outcome(False, "code error", str(exc))
            return Outcome(None, "harness error", str(exc))
        try:
            out, err = child.communicate(timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(False, "code timeout")
        finally:
            _kill_group(child)
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome(False, "code timeout")
    if child.returncode == 0 and out.endswith(done.encode()):
        return Outcome(True, "correct")
    last = err.decode(errors="replace").strip().splitlines()[-1:] or [""]
    return Outcome(False, "wrong" if last[0].startswith("AssertionError") else "code error", last[0][:200])


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
