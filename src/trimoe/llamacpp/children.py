"""Child processes that die with trimoe, even if trimoe is killed with SIGKILL.

A killed process runs no clean-up, so the kernel must do it: PR_SET_PDEATHSIG, set between fork and exec by a line of
Python (`preexec_fn` is not safe with threads). The signal is sent when the starting *thread* ends, so a thread must
wait for the child that it started. On systems other than Linux, children are started without this.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# argv: pid of the parent, program, its arguments. If the parent died before prctl, no signal would ever come.
_LAUNCH = """import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])"""


def bound(command: Sequence[str | Path]) -> list[str]:
    """The command that starts `command` as a child that dies with this process; its pid is the program's."""
    words = [os.path.abspath(command[0]), *(str(word) for word in command[1:])]
    if sys.platform != "linux":
        return words
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *words]
