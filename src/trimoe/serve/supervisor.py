"""Supervisor process between trimoe and a server: ends the server when trimoe ends, for whatever reason.

Run as a program: `python -I supervisor.py FD GRACE COMMAND...`. FD is the read end of a pipe whose other end trimoe
holds. The server is stopped when that pipe closes, when trimoe is no longer the parent, or on SIGTERM: TERM to its
process group, GRACE seconds, KILL; then every other descendant. It imports nothing from trimoe, so it starts quickly.

Invariants: a process that left the group or session is still a descendant (child subreaper) and is killed. If the
supervisor itself is killed, the kernel kills the server (PR_SET_PDEATHSIG). Not guaranteed: grandchildren after a
SIGKILL of the supervisor. Linux only.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PDEATHSIG, _SUBREAPER = 1, 36  # linux/prctl.h
_POLL = 0.2  # seconds


def main(fd: int, grace: float, command: list[str]) -> int:
    """Run the command until it ends or must end. Returns its exit code, 128 + the signal that ended it."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: asked.append(got))
    # This process has one thread: preexec_fn is safe, and the thread that PDEATHSIG is bound to lives long enough.
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    while server.poll() is None and not asked and os.getppid() == parent:
        if select.select([fd], [], [], _POLL)[0]:
            break
    stop(server, grace)
    code = server.returncode
    return code if code >= 0 else 128 - code


def stop(server: "subprocess.Popen[bytes]", grace: float) -> None:
    """End the server, its group and every other descendant."""
    end = time.monotonic() + grace
    _signal_group(server.pid, signal.SIGTERM)
    while time.monotonic() < end and (server.poll() is None or _children()):
        _reap(server)
        time.sleep(0.02)
    _signal_group(server.pid, signal.SIGKILL)
    end = time.monotonic() + grace
    while (server.poll() is None or _children()) and time.monotonic() < end:
        for pid in _children():
            _kill(pid)  # its own children become ours when it dies
        _reap(server)
        time.sleep(0.02)


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]


def _reap(server: "subprocess.Popen[bytes]") -> None:
    """Collect adopted orphans; `poll` collects the server itself."""
    for pid in _children():
        if pid != server.pid:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
