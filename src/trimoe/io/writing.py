"""Writes the large files of an artifact: several at a time, hashed, resumable, with progress.

A file is described by a function that appends it to a `Copier`. The same function resumes an interrupted run, because
the copier skips what was verified. The marks of all files are in one journal inside the temporary directory.
Invariants: a file depends on its description alone, not on threads or interruptions; an error in one file stops the
others. Not guaranteed: that the disk holds what was written (see `sync` and `read_back`).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import xxhash

from trimoe.errors import Refused
from trimoe.io.atomic import RESUME
from trimoe.io.copying import Copier
from trimoe.io.hashing import Marks
from trimoe.io.progress import Progress

_BLOCK = 1 << 20  # read back at a time

Append = Callable[[Copier], Iterator[int]]
"""Appends one file to a copier; yields the bytes of each step."""


@dataclass
class Written:
    """What was written, by file name: xxh3-128 (absent if the kernel copied), methods used to copy, and bytes kept from
    an earlier run after verification. Each thread fills in its own files."""

    digests: dict[str, str] = field(default_factory=dict)
    moved_by: dict[str, set[str]] = field(default_factory=dict)
    verified: dict[str, int] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """The methods used to copy, over all files."""
        return sorted(set().union(*self.moved_by.values()))

    @property
    def resumed(self) -> int:
        """Bytes kept from an earlier run."""
        return sum(self.verified.values())

    def hashes(self, folder: Path) -> dict[str, Any] | None:
        """Size and hash of each file for the manifest; None if the kernel copied, which hashes nothing."""
        sizes = {name: (folder / name).stat().st_size for name in self.digests}
        return {name: {"bytes": sizes[name], "xxh3_128": self.digests[name]} for name in sorted(sizes)} or None


class Journal:
    """The marks of all files of a temporary directory, one JSON line each. A truncated line is ignored; the bytes it
    would have covered are written again."""

    def __init__(self, path: Path) -> None:
        self._known: dict[str, list[tuple[int, str]]] = {}
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                name, size, digest = json.loads(line)
                if type(size) is not int or not isinstance(digest, str):
                    continue
                if size > max((s for s, _ in self._known.get(name, ())), default=0):
                    self._known.setdefault(name, []).append((size, digest))
            except (ValueError, TypeError):
                continue
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        os.write(self._fd, b"\n")  # ends a line that a kill truncated

    def marks(self, name: str) -> Marks:
        """The known marks of a file, and how to record more. Safe from several threads."""

        def note(size: int, digest: str) -> None:
            os.write(self._fd, json.dumps([name, size, digest]).encode() + b"\n")

        return Marks(tuple(self._known.get(name, ())), note)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def write_files(
    folder: Path,
    files: Mapping[str, tuple[int, Append]],
    *,
    jobs: int = 1,
    kernel: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write `files` (name -> size, function that appends it) into a directory of `publish_dir`, `jobs` at a time.

    Resumes from verified leftovers if the directory was opened with an identity. With `kernel` nothing is hashed, so
    nothing can be resumed. Raises the error of the first file that fails.
    """
    total, done, written = sum(size for size, _ in files.values()), 0, Written()
    _remove_others(folder, set() if kernel else {RESUME, *files})
    journal = Journal(folder / RESUME / "journal") if (folder / RESUME).is_dir() and not kernel else None

    def work(name: str) -> Iterator[int]:
        marks = None if journal is None else journal.marks(name)
        with Copier(folder / name, kernel=kernel, size=files[name][0], marks=marks) as copier:
            written.verified[name] = copier.resumed
            yield from files[name][1](copier)
            written.moved_by[name] = copier.methods
        if copier.digest is not None:
            written.digests[name] = copier.digest

    try:
        for name, count in _in_flight(work, list(files), jobs):
            done += count
            if progress is not None:
                progress(done, total, name)
    finally:
        if journal is not None:
            journal.close()
    return written


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Remove small files of an earlier run, which are written again; an outdated one must not stay."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            if child.name not in keep:
                shutil.rmtree(child)
        elif child.name not in keep:
            child.unlink()


def _in_flight(work: Callable[[str], Iterator[int]], names: list[str], jobs: int) -> Iterator[tuple[str, int]]:
    """The steps of all files, `jobs` files at a time in threads. An error, or closing the iterator, stops every thread
    at its next step."""
    if min(jobs, len(names)) <= 1:
        for name in names:
            for count in work(name):
                yield name, count
        return
    steps: SimpleQueue[tuple[str, int | Exception | None]] = SimpleQueue()
    stop = Event()

    def run(name: str) -> None:
        try:
            with closing(work(name)) as counts:  # type: ignore[type-var]
                for count in counts:
                    steps.put((name, count))
                    if stop.is_set():
                        return
            steps.put((name, None))
        except Exception as exc:  # noqa: BLE001 raised again in the caller's thread
            steps.put((name, exc))

    with ThreadPoolExecutor(jobs) as pool:
        running = len([pool.submit(run, name) for name in names])
        try:
            while running:
                name, step = steps.get()
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    running -= 1
                else:
                    yield name, step
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def read_back(folder: Path, digests: Mapping[str, str], progress: Progress | None = None) -> None:
    """Wait for the disk, read every file from it and compare its hash. Raises `Refused` naming the file."""
    sizes = {name: (folder / name).stat().st_size for name in digests}
    done, block = 0, memoryview(bytearray(_BLOCK))
    for name, digest in digests.items():
        hasher = xxhash.xxh3_128()
        with (folder / name).open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # drop the written pages, so that reads come from the disk
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := file.readinto(block):
                hasher.update(block[:count])
                done += count
                if progress is not None:
                    progress(done, sum(sizes.values()), f"verifying {name}")
        if hasher.hexdigest() != digest:
            raise Refused(
                f"{name} is not what was written",
                expected=f"xxh3-128 {digest}",
                actual=f"{hasher.hexdigest()} when read back",
                remedy="the disk or the memory is faulty; write to another disk",
            )
