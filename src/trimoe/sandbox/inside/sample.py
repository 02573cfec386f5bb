"""One run of untrusted code in its own namespaces, with limits, and the end of all its processes.

A sample is a process 1 ("init", trusted) in fresh process, mount and IPC namespaces with an empty scratch folder at
/tmp. Init starts a Python role (a function of this program, forked warm) or the commands of a toolchain, one after the
other. When init ends, the kernel ends every other process in the namespace and the scratch folder is gone.

Init itself reads the sample's data from the worker's input, so the worker never holds the tests of one sample in the
memory from which the next sample is forked. Init cannot be signalled, traced or read from inside.
"""

import json
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trimoe.sandbox.inside import kernel
from trimoe.sandbox.inside.limits import Limits, seal, set_limits
from trimoe.sandbox.inside.namespaces import NOBODY

_HEAD, _TAIL = 8 << 10, 4 << 10  # bytes kept of a program's standard error and standard output
_HIGHEST_FD = 4096

Role = Callable[[Any], NoReturn]
"""The function that a Python sample runs on its data, in its second process."""


class Spaces:
    """Fresh namespaces per sample, for a worker in namespaces of its own."""

    scratch = "/tmp"
    filtered = True
    own_users = True

    def __init__(self, *, proc: bool) -> None:
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._proc = proc

    def before_fork(self) -> None:
        """Make the next child process 1 of a new namespace."""
        kernel.setns(self._own, kernel.CLONE_NEWPID)
        kernel.unshare(kernel.CLONE_NEWPID, "pid")

    def in_init(self, limits: Limits) -> None:
        """In init: mount an empty /tmp, and a /proc with the sample's own processes or nothing."""
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC, "mount, ipc")
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        options = f"size={limits.scratch},nr_inodes={limits.files},mode=700,uid={NOBODY},gid={NOBODY}"
        kernel.mount("scratch", self.scratch, "tmpfs", flags, options)
        if self._proc:
            kernel.mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC)
        else:
            kernel.mount("none", "/proc", "tmpfs", flags | kernel.MS_NOEXEC, "size=4k,mode=000")

    def sweep(self) -> None:
        """In init: end the processes that a finished command left behind."""
        if os.getpid() != 1:
            raise RuntimeError("not alone in a process namespace")  # -1 would address every process of the machine
        try:
            os.kill(-1, signal.SIGKILL)  # everything in the namespace but init itself
        except ProcessLookupError:
            return
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def after(self) -> None:
        """In the worker, after init was reaped: nothing, the kernel has ended everything."""


class Bare(Spaces):
    """No namespaces: for a container that is discarded after each sample (`filtered`), or the unsafe engine."""

    def __init__(self, *, filtered: bool) -> None:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # orphans of a sample are reparented to the worker
        self.filtered, self.own_users = filtered, False
        self._folders: list[str] = []

    def before_fork(self) -> None:
        """Create a fresh scratch folder."""
        self.scratch = tempfile.mkdtemp(prefix="trimoe-sample-")
        self._folders.append(self.scratch)

    def in_init(self, limits: Limits) -> None:
        """Nothing to set up."""

    def sweep(self) -> None:
        """Left to `after`: without a namespace, init cannot tell which processes are its own."""

    def after(self) -> None:
        """End orphans and wipe the folders."""
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while orphans := children.read_text().split():
            for orphan in map(int, orphans):
                os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)  # one by one: its living children are now reparented to this process
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)


@dataclass
class Sample:
    """A running sample: its init and the descriptor of its report."""

    pid: int
    report_fd: int
    spaces: Spaces
    report: bytearray = field(default_factory=bytearray)

    def end(self) -> None:
        """Kill and reap init. After that no process of the sample exists."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.report_fd)

    def steps(self) -> list[dict[str, Any]]:
        """The report: exit status, CPU seconds and output of each step. Empty if init was stopped."""
        return list(json.loads(self.report)) if self.report else []


def start(spaces: Spaces, size: int, limits: Limits, role: Role | None = None, keep: Sequence[int] = ()) -> Sample:
    """Start a sample whose data are the next `size` bytes of standard input; returns when it has read them.

    The sample runs `role`, or without one the files and commands in its data. `keep` are descriptors for `role`.
    Raises `OSError` if the sample cannot be set up.
    """
    reader, writer = os.pipe()
    spaces.before_fork()
    pid = os.fork()
    if pid == 0:
        _init(spaces, size, limits, role, writer, (writer, *keep))
    os.close(writer)
    sample = Sample(pid, reader, spaces)
    if os.read(reader, 1) != b"+":
        detail = os.read(reader, 1000).decode(errors="replace")
        sample.end()
        raise OSError(0, f"a sample could not be set up: {detail or 'its first process ended'}")
    return sample


def _init(spaces: Spaces, size: int, limits: Limits, role: Role | None, out: int, keep: Sequence[int]) -> NoReturn:
    try:
        spaces.in_init(limits)
        if spaces.filtered:
            seal()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # keeps its memory and descriptors closed to the sample
        job = json.loads(read_exactly(0, size))
        os.chdir(spaces.scratch)
        _keep_only(keep)
        os.write(out, b"+")
    except BaseException as exc:  # noqa: BLE001 the worker must learn of any failure
        os.write(out, f"-{exc!r}"[:1000].encode())
        os._exit(1)
    try:
        report = [_python(spaces, role, job, limits, out)] if role else _commands(spaces, job, limits)
    except BaseException as exc:  # noqa: BLE001
        report = [{"fault": repr(exc)[:1000]}]
    line = json.dumps(report).encode()
    while line:
        line = line[os.write(out, line) :]
    os._exit(0)


def read_exactly(fd: int, size: int) -> bytes:
    """Read `size` bytes. Raises `EOFError` if there are fewer."""
    data = bytearray()
    while len(data) < size:
        block = os.read(fd, min(1 << 20, size - len(data)))
        if not block:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += block
    return bytes(data)


def _keep_only(keep: Sequence[int]) -> None:
    """Redirect standard input, output and error to /dev/null and close everything else except `keep`."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    last = 2
    for fd in sorted(keep):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, _HIGHEST_FD)


def _python(spaces: Spaces, role: Role, job: Any, limits: Limits, ours: int) -> dict[str, Any]:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)  # only init writes the report
        _limit_or_tell(spaces, limits, tell)
        os.close(ready)
        os.close(tell)
        role(job)
    os.close(tell)
    fault = os.read(ready, 1000)
    _, status, usage = os.wait4(child, 0)
    if fault:
        return {"fault": fault.decode(errors="replace")}
    return {"exit": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}


def _limit_or_tell(spaces: Spaces, limits: Limits, tell: int) -> None:
    try:
        set_limits(limits, own_users=spaces.own_users)
    except BaseException as exc:  # noqa: BLE001
        os.write(tell, f"could not set limits: {exc!r}"[:1000].encode())
        os._exit(1)


def _commands(spaces: Spaces, job: Any, limits: Limits) -> list[dict[str, Any]]:
    """Write the files, then run the commands until one fails. One report per command."""
    for name, text in job["files"].items():
        path = Path(spaces.scratch, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    reports: list[dict[str, Any]] = []
    for argv in job["steps"]:
        reports.append(_command(spaces, argv, job["env"], limits))
        spaces.sweep()
        if reports[-1].get("exit") != 0:
            break
    return reports


def _command(spaces: Spaces, argv: list[str], env: dict[str, str], limits: Limits) -> dict[str, Any]:
    (out, tell_out), (err, tell_err), (ready, tell) = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(tell_out, 1)
        os.dup2(tell_err, 2)
        _limit_or_tell(spaces, limits, tell)
        try:
            os.execvpe(argv[0], argv, {**env, "HOME": spaces.scratch, "TMPDIR": spaces.scratch})
        except OSError as exc:
            os.write(tell, f"{argv[0]}: {exc}".encode())
            os._exit(1)
    for fd in (tell_out, tell_err, tell):
        os.close(fd)
    if fault := os.read(ready, 1000):
        os.waitpid(child, 0)
        return {"fault": fault.decode(errors="replace")}
    texts, stopped = _listen(child, out, err, limits)
    if stopped:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    for fd in (out, err, ready):
        os.close(fd)
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "cpu": usage.ru_utime + usage.ru_stime,
        "stopped": stopped,
        "out": texts[out][-_TAIL:].decode(errors="replace"),
        "err": texts[err][:_HEAD].decode(errors="replace"),
    }


def _listen(child: int, out: int, err: int, limits: Limits) -> tuple[dict[int, bytes], str | None]:
    """Read both streams until the child ends.

    Returns the end of standard output and the start of standard error by descriptor, and the limit it exceeded, if any.
    """
    texts, total = {out: b"", err: b""}, 0
    poll, ended = select.poll(), os.pidfd_open(child)
    for fd in (out, err, ended):
        poll.register(fd, select.POLLIN)
    try:
        while True:
            events = poll.poll()  # no timeout: the worker watches the time
            for fd in (fd for fd, _ in events if fd != ended):
                block = os.read(fd, 1 << 16)
                if not block:
                    poll.unregister(fd)
                total += len(block)
                texts[fd] = (texts[fd] + block)[-_TAIL:] if fd == out else (texts[fd] + block)[:_HEAD]
            if total > limits.output:
                return texts, "output"
            if [fd for fd, _ in events] == [ended]:
                return texts, None  # it has ended and the pipes are empty
    finally:
        os.close(ended)
