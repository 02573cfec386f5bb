"""Stands between trimoe and a server it starts: when trimoe is gone, however it went, the server goes too.

Run as a program: `python -I keeper.py FD GRACE COMMAND...`. FD is the read end of a pipe whose other end trimoe holds.
The server is stopped when that pipe closes, when trimoe is no longer the parent, or on SIGTERM: TERM to its process
group, GRACE seconds, KILL; then whatever else descended from it. It imports nothing of trimoe, so it starts at once.

Invariants: a process that left the group or its session is still ours (child subreaper) and is killed. If the keeper
itself is killed, the kernel kills the server (PR_SET_PDEATHSIG). Not guaranteed: grandchildren when the keeper is
killed with SIGKILL. Linux only.
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
    """Run the command until it ends or must end; its exit code, 128 + signal if one ended it."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: asked.append(got))
    # This process has one thread, so preexec_fn is safe, and the signal is bound to a thread that lives as long.
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
            _kill(pid)  # its own children come to us when it dies
        _reap(server)
        time.sleep(0.02)


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]


def _reap(server: "subprocess.Popen[bytes]") -> None:
    """Collect the orphans that came to us; the server itself is collected by `poll`."""
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
