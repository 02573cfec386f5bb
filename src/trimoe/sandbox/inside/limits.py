"""Resource limits of a sample: their values, how they are set, and how use is measured while it runs."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from trimoe.sandbox.inside import kernel, seccomp

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Limits:
    """Seconds, bytes and counts of one sample."""

    cpu: float = 10
    """CPU seconds of one process, and of all processes of the sample together."""
    idle: float = 15
    """Seconds in which no process of the sample runs or waits to run. Waiting for a busy processor does not count, so
    only sleeping samples reach this limit."""
    call_cpu: float = 10
    """CPU seconds between two results of a list of calls."""
    memory: int = 2 << 30
    """Bytes that one process may map writable, and resident bytes of all together, without scratch files."""
    scratch: int = 64 << 20
    """Bytes of all files together, and of the largest one. They live in memory."""
    files: int = 4096
    """Files and folders."""
    processes: int = 64
    """Processes and threads, including three of the harness."""
    output: int = 8 << 20
    """Bytes of results, or of printed output."""

    @property
    def wall(self) -> float:
        """Seconds of wall time: a safety net below the other limits."""
        return 60 + 20 * (self.cpu + self.idle)


def seal() -> None:
    """Drop all capabilities of the calling process and its children for good, and install the system call filter."""
    kernel.drop_capabilities()
    seccomp.install()


def set_limits(limits: Limits, *, own_users: bool) -> None:
    """Limit the calling process for good, and give it a session of its own.

    Address space is not limited, because runtimes reserve far more than they use; RLIMIT_DATA counts writable memory.
    Processes are counted per user, so that limit is set only in a user namespace of the sandbox (`own_users`).
    """
    os.setsid()
    seconds = max(1, round(limits.cpu))
    wanted = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU of the soft limit tells a timeout from any other kill
        resource.RLIMIT_DATA: (limits.memory, limits.memory),
        resource.RLIMIT_FSIZE: (limits.scratch, limits.scratch),
        resource.RLIMIT_NOFILE: (256, 256),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_STACK: (64 << 20, 64 << 20),
    }
    if own_users:
        wanted[resource.RLIMIT_NPROC] = (limits.processes, limits.processes)
    for kind, (soft, hard) in wanted.items():
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


@dataclass(frozen=True)
class Use:
    """Use of several processes: CPU seconds so far, whether any runs or waits to run now, and resident bytes now."""

    cpu: float
    busy: bool
    resident: int


def use_below(root: int, shared: int) -> Use:
    """Use of the descendants of process `root`; the CPU time of those that ended is in their parents' counters.

    `shared` bytes are subtracted for each: a forked child reports its parent's pages until it writes to them.
    """
    parents: dict[int, int] = {}
    used: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _fields(entry)):
            parents[int(entry)] = int(fields[1])
            used[int(entry)] = (sum(map(int, fields[11:15])), int(fields[21]))  # utime, stime, children's; rss
    below, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        below, grown = below | more, bool(more)
    below.discard(root)
    ticks = sum(used[pid][0] for pid in below)
    pages = sum(max(0, used[pid][1] - shared // _PAGE) for pid in below)
    return Use(ticks / _TICKS, any(map(_busy, below)), pages * _PAGE)


def _fields(path: str) -> list[bytes]:
    """The fields after the name in /proc/PID/stat (state, parent, ...); empty if the process has ended."""
    try:
        return Path(f"/proc/{path}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _busy(pid: int) -> bool:
    """Whether a thread of a process runs or waits for a processor (R) or a disk (D)."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(_fields(f"{pid}/task/{thread}")[:1] in ([b"R"], [b"D"]) for thread in threads)


def resident_of(pid: int) -> int:
    """Resident bytes of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
