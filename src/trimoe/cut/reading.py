"""Reading a source file fast, whether the page cache holds it or not.

What the cache holds is copied from there. What it does not hold is read around it (O_DIRECT), by several threads of the
caller: that takes no memory from others, and the kernel does not read ahead into experts that are dropped. Where the
system has no such reads, or the file system refuses them, everything goes through the cache; `methods` says so.
Invariant: both ways give the bytes of the file; the kernel writes out what is dirty before it reads around its cache.
"""

import ctypes
import errno
import mmap
import os
from pathlib import Path
from threading import local

from trimoe.errors import CheckpointError

_ALIGN = 4096  # of a direct read's place, length and memory; what no current disk exceeds
_REFUSED = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


class SourceFile:
    """An open file; `read_into` is safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.methods: set[str] = set()
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if hasattr(os, "posix_fadvise"):  # twice the readahead, for what goes through the cache
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._direct = _open_direct(path)
        self._cache = None if self._direct is None else _Residence(self.fd)
        self._own = local()
        self._stamp = self._now()

    def close(self) -> None:
        """Close the file; nobody may read any more."""
        if self._cache is not None:
            self._cache.close()
        if self._direct is not None:
            os.close(self._direct)
        os.close(self.fd)

    def unchanged(self) -> None:
        """Raise `CheckpointError` if the file was modified since it was opened."""
        if self._now() != self._stamp:
            raise CheckpointError(f"{self.path} was modified while it was copied", expected="a source at rest",
                                  remedy="wait until nothing writes to the checkpoint and run again")  # fmt: skip

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the file's bytes from `start` on.

        Raises `CheckpointError` if the file ends before; `OSError` as the system gives it.
        """
        if self._direct is not None and self._cache is not None and not self._cache.holds(start, len(target)):
            try:
                self._read_direct(self._direct, target, start)
                return
            except OSError as exc:
                if exc.errno not in _REFUSED:
                    raise
                self._cache.all = True  # not tried again for this file
        self.methods.add("read/write, hashed")
        done = 0
        while done < len(target):
            count = os.preadv(self.fd, [target[done:]], start + done)
            if count == 0:
                raise ended_early(len(target), done)
            done += count

    def _read_direct(self, fd: int, target: memoryview, start: int) -> None:
        first, end = start // _ALIGN * _ALIGN, start + len(target)
        wanted = -(-end // _ALIGN) * _ALIGN - first
        scratch: memoryview | None = getattr(self._own, "scratch", None)
        if scratch is None or len(scratch) < wanted:  # of a mapping, for its alignment
            scratch = self._own.scratch = memoryview(mmap.mmap(-1, wanted + _ALIGN))
        done = 0
        while done < end - first:
            count = os.preadv(fd, [scratch[done:wanted]], first + done)
            done += count
            if done < end - first and (count == 0 or done % _ALIGN):  # the last read of a file may end anywhere
                raise ended_early(len(target), max(0, done - (start - first)))
        self.methods.add("direct reads, hashed")
        kind = ctypes.c_char * len(target)  # memmove lets other threads run meanwhile, assigning to a slice does not
        ctypes.memmove(kind.from_buffer(target), kind.from_buffer(scratch, start - first), len(target))

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns


class _Residence:
    """Which pages of a file the page cache holds, by mincore(2)."""

    def __init__(self, fd: int) -> None:
        self.all = False
        self._address: int | None = None
        self._size = os.fstat(fd).st_size
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
        self._libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
        if self._size:
            address = self._libc.mmap(None, self._size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
            self._address = None if address in (None, ctypes.c_void_p(-1).value) else address
        self.all = self._address is None  # not knowing, the cache is asked for everything

    def holds(self, start: int, length: int) -> bool:
        """Whether all of a range is there, or cannot be known."""
        if self.all or length == 0:
            return True
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        length = min(start + length, self._size) - first
        pages = ctypes.create_string_buffer(max(0, -(-length // mmap.PAGESIZE)))
        if length <= 0 or self._libc.mincore(self._address + first, length, pages) != 0:  # type: ignore[operator]
            return True
        found: bytes = pages.raw
        return found.count(1) == len(found)  # other bits are reserved: a page that shows one counts as absent

    def close(self) -> None:
        """Give the address space back."""
        if self._address is not None:
            self._libc.munmap(self._address, self._size)


def ended_early(expected: int, actual: int) -> CheckpointError:
    """A source file that is shorter than its header says."""
    return CheckpointError("a source file ended early while it was copied", expected=f"{expected} more bytes",
                           actual=f"{actual} bytes", remedy="run again when nothing writes to it")  # fmt: skip


def _open_direct(path: Path) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as exc:
        if exc.errno not in _REFUSED:
            raise
        return None
