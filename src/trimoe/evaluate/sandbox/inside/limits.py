"""What a sample may use, how it is confined to that, and how use is measured while it runs."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from trimoe.evaluate.sandbox.inside import kernel, seccomp

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Limits:
    """Seconds, bytes and counts of one sample."""

    cpu: float = 10
    """CPU seconds of one process, and of all processes of the sample together."""
    idle: float = 15
    """Seconds in which nothing of the sample runs or waits for a processor. Only sleepers meet it: a busy machine keeps
    processes waiting, and that is not counted."""
    call_cpu: float = 10
    """CPU seconds between two results of a list of calls."""
    memory: int = 2 << 30
    """Bytes that one process may map writable, and that all together may hold resident, scratch files not included."""
    scratch: int = 64 << 20
    """Bytes of all files together, and of the largest one. They live in memory."""
    files: int = 4096
    """Files and folders."""
    processes: int = 64
    """Processes and threads, three of ours included."""
    output: int = 8 << 20
    """Bytes of results, or of what a program prints."""

    @property
    def wall(self) -> float:
        """Seconds from start to end, whatever happens: a net below the other limits."""
        return 60 + 20 * (self.cpu + self.idle)


def confine(limits: Limits, *, filtered: bool, own_users: bool) -> None:
    """The calling process, for good: limits, no capabilities, no new privileges, the filter of system calls.

    Address space is not limited as such: runtimes reserve much more than they use. RLIMIT_DATA counts what can be
    written. Without `filtered` only the limits are set. Processes are counted per user, so that limit is set only where
    the users are the sandbox's own (`own_users`).
    """
    os.setsid()
    seconds = max(1, round(limits.cpu))
    wanted = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # the soft limit's SIGXCPU tells a timeout from any other kill
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
    if filtered:
        kernel.drop_capabilities()
        seccomp.install()


@dataclass(frozen=True)
class Use:
    """Of several processes together: CPU seconds, seconds on a processor or waiting for one, bytes resident now."""

    cpu: float
    active: float
    resident: int


def use_below(root: int, shared: int) -> Use:
    """What the descendants of process `root` use; CPU of those that ended is kept by whoever waited for them.

    `shared` bytes are not counted for each: a forked child shows its parent's pages until it writes to them.
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
    return Use(ticks / _TICKS, sum(map(_active, below)), pages * _PAGE)


def _fields(pid: str) -> list[bytes]:
    """What follows the name in /proc/PID/stat; nothing if it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _active(pid: int) -> float:
    """Seconds that the threads of a process ran or waited for a processor (nanoseconds in schedstat)."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            ran, waited, _ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
            total += int(ran) + int(waited)
    except (FileNotFoundError, ProcessLookupError):
        return total / 1e9  # it ended meanwhile, or this kernel keeps no such account
    return total / 1e9


def resident_of(pid: int) -> int:
    """Bytes resident of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
