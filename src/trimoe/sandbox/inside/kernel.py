"""Linux system calls missing in Python 3.11: namespaces, mounts, capabilities; for x86_64 and aarch64.

Invariant: every function raises `OSError` with the name of the call when the kernel refuses it. This module decides no
policy. Call numbers from 424 on are equal on all architectures; older ones are in `_NUMBERS`.
"""

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
MNT_DETACH = 2
MOUNT_RDONLY, MOUNT_NOSUID, MOUNT_NODEV, MOUNT_NOEXEC = 1, 2, 4, 8  # MOUNT_ATTR_* of mount_setattr(2)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 8, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_NUMBERS = {"x86_64": {"pivot_root": 155}, "aarch64": {"pivot_root": 41}}
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CAPABILITY_VERSION_3 = 0x20080522


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def supported_machine() -> bool:
    """Whether the system call numbers of this processor are known."""
    return platform.machine() in _NUMBERS


def unshare(flags: int, what: str) -> None:
    """unshare(2); `what` names the namespaces in the error."""
    _check(_libc.unshare(flags), f"unshare({what})")


def setns(fd: int, kind: int) -> None:
    """setns(2). With CLONE_NEWPID it sets the namespace of the next children."""
    _check(_libc.setns(fd, kind), "setns")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one value."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    type_ = None if kind is None else kind.encode()
    text = data.encode() or None
    result = _libc.mount(source.encode(), target.encode(), type_, ctypes.c_ulong(flags), text)
    _check(result, f"mount({kind or source} at {target})")


def unmount(target: str) -> None:
    """umount2(2) with MNT_DETACH."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount({target})")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    number = _NUMBERS[platform.machine()]["pivot_root"]
    _check(_libc.syscall(number, new.encode(), old.encode()), "pivot_root")


def copy_mount(path: str) -> int:
    """A detached copy of the mounts at and below `path`, as a descriptor: open_tree(2)."""
    flags = 1 | os.O_CLOEXEC | _AT_RECURSIVE  # OPEN_TREE_CLONE
    return _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), flags), f"open_tree({path})")


def attach_mount(fd: int, target: str) -> None:
    """Attach a copy made by `copy_mount`: move_mount(2)."""
    flags = 4  # MOVE_MOUNT_F_EMPTY_PATH
    _check(_libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, target.encode(), flags), f"move_mount({target})")


def restrict_mount(fd: int, attributes: int, *, below: bool = True) -> None:
    """Set attributes (MOUNT_*) on a mount and, with `below`, on all mounts below it: mount_setattr(2), Linux 5.12."""
    wanted = _MountAttr(attr_set=attributes)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if below else 0)
    result = _libc.syscall(_MOUNT_SETATTR, fd, b"", flags, ctypes.byref(wanted), ctypes.sizeof(wanted))
    _check(result, "mount_setattr")


def drop_capabilities() -> None:
    """Drop every capability for good: bounding set, then effective, permitted and inheritable."""
    for number in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) < 0:
            break  # EINVAL: past the last capability of this kernel
    _capset(0)


def keep_capabilities_as(uid: int) -> None:
    """Become `uid` (user and group) and keep all permitted capabilities effective."""
    prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _capset((1 << 41) - 1)


def _capset(mask: int) -> None:
    """Set effective and permitted to `mask`, limited to what is permitted now; clear inheritable."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low words, then high words
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(data)), "capget")
    low, high = data[1] & mask, data[4] & (mask >> 32)
    data[:] = [low, low, 0, high, high, 0]
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
