"""What a sample may use, how it is confined to that, and how use is measured while it runs."""

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
    """Seconds in which nothing of the sample runs or waits to run. Only sleepers meet it: a busy machine keeps
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


def seal() -> None:
    """The calling process and all its children, for good: no capabilities, none to be gained, the filter of calls."""
    kernel.drop_capabilities()
    seccomp.install()


def set_limits(limits: Limits, *, own_users: bool) -> None:
    """The calling process, for good; in a session of its own.

    Address space is not limited as such: runtimes reserve much more than they use. RLIMIT_DATA counts what can be
    written. Processes are counted per user, so that limit is set only where the users are the sandbox's own.
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


@dataclass(frozen=True)
class Use:
    """Of several processes together: CPU seconds so far; now: whether any runs or waits to run, and bytes resident."""

    cpu: float
    busy: bool
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
    return Use(ticks / _TICKS, any(map(_busy, below)), pages * _PAGE)


def _fields(path: str) -> list[bytes]:
    """What follows the name in /proc/PID/stat (state, parent, ...); nothing if it has ended meanwhile."""
    try:
        return Path(f"/proc/{path}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _busy(pid: int) -> bool:
    """Whether a thread of a process runs, waits for a processor (R), or for a disk (D)."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(_fields(f"{pid}/task/{thread}")[:1] in ([b"R"], [b"D"]) for thread in threads)


def resident_of(pid: int) -> int:
    """Bytes resident of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
