"""Isolates a worker: separate namespaces without a network, and a root file system with only the allowed files.

Three processes: the one that was started stays outside and writes the identity map; the second creates the namespaces;
the third is process 1 in them and becomes the worker. Each one dies with its predecessor.

Invariants: only the paths of the view exist inside, all read-only. Of the outside identities only the caller's exists
inside (if started by root: root during setup, only `nobody` afterwards). No network interface is up.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

from trimoe.sandbox.inside import kernel

NOBODY = 65534
_SPACES = {
    "user": kernel.CLONE_NEWUSER,
    "mount": kernel.CLONE_NEWNS,
    "pid": kernel.CLONE_NEWPID,
    "net": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "cgroup": kernel.CLONE_NEWCGROUP,
}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NEW = "/tmp"  # where the new root is assembled: any folder that exists everywhere


def enter(view: dict[str, Any], fault: Callable[[str, OSError], None]) -> None:
    """Return as process 1 of the new namespaces. `fault(stage, error)` reports an error and ends the process."""
    (ready, tell_ready), (go, tell_go) = os.pipe(), os.pipe()
    middle = os.fork()
    if middle:
        os.close(tell_ready)
        os.close(go)
        _stay_outside(middle, ready, tell_go, fault)
    os.close(ready)
    os.close(tell_go)
    try:
        kernel.unshare(sum(_SPACES.values()), ", ".join(_SPACES))
        os.write(tell_ready, b"+")
        if os.read(go, 1) != b"+":
            os._exit(1)  # the outer process has reported already
        os.close(tell_ready)
        os.close(go)
    except OSError as exc:
        fault("namespaces", exc)
    inner = os.fork()
    if inner:
        for fd in (0, 1):
            os.close(fd)  # only the worker uses them; otherwise the parent would not see them close
        _die_with_parent()
        _, status = os.waitpid(inner, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    try:
        _build_root(view)
        if os.geteuid() == 0:
            kernel.keep_capabilities_as(NOBODY)
        _die_with_parent()
    except OSError as exc:
        fault("mounts", exc)


def _stay_outside(middle: int, ready: int, go: int, fault: Callable[[str, OSError], None]) -> None:
    """Map the identities, wait, and exit with the status of the worker. Never returns."""
    if os.read(ready, 1) == b"+":
        try:
            _map_identities(middle)
            os.write(go, b"+")
        except OSError as exc:
            os.kill(middle, signal.SIGKILL)
            fault("identities", exc)
    for fd in (0, 1, ready, go):
        os.close(fd)
    _, status = os.waitpid(middle, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _map_identities(pid: int) -> None:
    """Map `nobody` to the caller; for root, map `nobody` to itself, and 0 to root while mounts are made."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        users = groups = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
    else:
        users, groups = f"{NOBODY} {uid} 1\n", f"{NOBODY} {gid} 1\n"
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", users)
    _write(f"/proc/{pid}/gid_map", groups)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _build_root(view: dict[str, Any]) -> None:
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    locked = kernel.MOUNT_RDONLY | kernel.MOUNT_NOSUID
    # Copy first: mounting over _NEW may hide some of the sources.
    copies = [(_copy(source, locked | kernel.MOUNT_NODEV), os.path.isdir(source), to) for source, to in view["binds"]]
    copies += [(_copy(device, locked | kernel.MOUNT_NOEXEC), False, device) for device in _DEVICES]
    kernel.mount("trimoe", _NEW, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    root = os.open(_NEW, os.O_PATH | os.O_DIRECTORY)
    for folder in ("proc", "tmp", "dev", "etc"):
        os.mkdir(f"{_NEW}/{folder}", 0o755)
    for fd, is_folder, target in copies:
        _make_target(_NEW + target, folder=is_folder)
        kernel.attach_mount(fd, _NEW + target)
        os.close(fd)
    for link, leads_to in view["symlinks"]:
        os.makedirs(os.path.dirname(_NEW + link), exist_ok=True)
        os.symlink(leads_to, _NEW + link)
    for path, text in view["files"].items():
        os.makedirs(os.path.dirname(_NEW + path), exist_ok=True)
        with open(_NEW + path, "w") as handle:
            handle.write(text)
    # Mounted while the old /proc is still visible, as the kernel requires for a new one.
    kernel.mount("proc", f"{_NEW}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    os.fchdir(root)
    kernel.pivot_root(".", ".")
    kernel.unmount(".")  # the old root is stacked on the new one
    os.chdir("/")
    os.close(root)
    here = os.open("/", os.O_PATH | os.O_DIRECTORY)
    kernel.restrict_mount(here, locked | kernel.MOUNT_NODEV, below=False)  # /proc below needs no further restriction
    os.close(here)


def _copy(path: str, attributes: int) -> int:
    fd = kernel.copy_mount(path)
    kernel.restrict_mount(fd, attributes)
    return fd


def _make_target(path: str, *, folder: bool) -> None:
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _die_with_parent() -> None:
    parent = os.getppid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the request
        os._exit(1)
