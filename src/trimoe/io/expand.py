"""Reads data files that may be compressed, under limits: a few kilobytes of gzip can stand for terabytes.

Invariants: only regular files are opened (a device or a pipe may never end); expanded bytes and the length of one line
are bounded. A compressed file that is really larger is read after `gunzip`: plain files have no limit on their whole.
"""

import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, cast

LARGEST = 4 << 30  # bytes that a compressed file may expand to
LARGEST_LINE = 512 << 20  # characters or bytes of one line; a row of LiveCodeBench has up to 100 million
_GZIP = b"\x1f\x8b"


class TooLarge(ValueError):
    """Data beyond a limit, with the remedy in its text."""


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, expanded if it is gzipped. Reading raises `TooLarge` beyond `LARGEST` expanded bytes.

    Raises `OSError` for a file that cannot be opened, and `TooLarge` for one that is not a regular file.
    """
    require_regular(path)
    with path.open("rb") as handle:
        zipped = handle.read(2) == _GZIP
    if not zipped:
        return path.open("rb")
    return io.BufferedReader(_Bounded(cast(IO[bytes], gzip.GzipFile(path)), path))


def opened_text(path: Path) -> io.TextIOWrapper:
    """The same as UTF-8 text; only a newline ends a line."""
    return io.TextIOWrapper(cast(io.BufferedReader, opened(path)), encoding="utf-8", newline="\n")


def lines(handle: IO[AnyStr], longest: int | None = None) -> Iterator[AnyStr]:
    """The lines of a file. `TooLarge` for one without an end in sight (`longest`, by default `LARGEST_LINE`)."""
    most = LARGEST_LINE if longest is None else longest
    number = 0
    while line := handle.readline(most + 1):
        number += 1
        if len(line) > most:
            raise TooLarge(f"line {number} has more than {most} characters")
        yield line


def whole(path: Path) -> bytes:
    """All bytes of a file, expanded."""
    with opened(path) as handle:
        return handle.read()


def stored(path: Path) -> bytes:
    """All bytes of a file as they are on disk. `TooLarge` for one that is not a regular file."""
    require_regular(path)
    return path.read_bytes()


def expanded(data: bytes, path: Path) -> bytes:
    """Bytes that were read from `path`, expanded if they are gzipped."""
    if data[:2] != _GZIP:
        return data
    with io.BufferedReader(_Bounded(cast(IO[bytes], gzip.GzipFile(fileobj=io.BytesIO(data))), path)) as handle:
        return handle.read()


def require_regular(path: Path) -> None:
    """Raise `TooLarge` for a pipe, a device or a directory: opening a pipe waits for a writer that may never come."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise TooLarge(f"{path} is not a regular file, so it may have no end; copy its content into one")


def inflated(data: bytes, most: int = LARGEST) -> bytes:
    """The bytes that zlib compressed. Raises `zlib.error`, and `TooLarge` beyond `most` bytes."""
    decompressor = zlib.decompressobj()
    made = decompressor.decompress(data, most + 1)
    if len(made) > most:
        raise TooLarge(f"compressed data of more than {most} bytes")
    if not decompressor.eof:
        raise zlib.error("incomplete or truncated stream")
    return made


class _Bounded(io.RawIOBase):
    """The bytes of a stream, refused beyond `LARGEST`."""

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self._source, self._path, self._left = source, path, LARGEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), 1 << 16))
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(f"{self._path} expands to more than {LARGEST >> 20} MiB; gunzip it first if that is right")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()
