"""Hidden states between two layers, read batch by batch for one layer while those for the next are written.

They are always written to the state folder, from which a killed run resumes; they stay in memory too if the plan says
that they fit. Both ways give the same values.
Invariants: a file is complete, checksummed and synced when `end` returns; at most `_AHEAD` batches wait to be written.
"""

import os
import queue
import threading
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trimoe.calibrate.forward.batching import Batch
from trimoe.calibrate.state import Mark, RunState, damaged

_AHEAD = 2
_SYNC_EVERY = 64 << 20
"""Bytes after which the writer syncs, so that the wait at the end of a layer is short."""


class HiddenStates:
    """Hidden states [windows, length, H] of all batches, in the forward pass's type.

    A file holds the batches one after the other, without a header. With `in_memory` they are also kept in RAM, and only
    a resumed run reads the file; otherwise each batch is read from it.
    """

    def __init__(self, state: RunState, batches: list[Batch], hidden: int, dtype: Any, in_memory: bool) -> None:
        self._state, self._dtype, self._in_memory = state, dtype, in_memory
        self._shapes = [(*batch.real.shape, hidden) for batch in batches]
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape in self._shapes]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._kept: list[Any] = [None] * len(batches)
        self._reader: BufferedReader | None = None
        self._writer: _Writer | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all hidden states between two layers."""
        return int(self._offsets[-1])

    def begin(self, layer: int) -> None:
        """From now on, `write` appends to the file for `layer`."""
        self._writer = _Writer(self._state.hidden_path(layer))

    def write(self, i: int, hidden: Any) -> None:
        """Keep batch `i` for the next layer."""
        import torch

        hidden = hidden.to("cpu").contiguous()
        if self._in_memory:
            self._kept[i] = hidden
        assert self._writer is not None
        self._writer.put(hidden.reshape(-1).view(torch.uint8).numpy().data)

    def end(self) -> int:
        """Sync what was written and return its checksum; from now on, `read` returns it."""
        assert self._writer is not None
        crc = self._writer.finish()
        self._open(self._writer.path)
        return crc

    def resume(self, mark: Mark) -> None:
        """Open and verify the hidden states that enter the layer after `mark`. Raises `BadInput` if damaged."""
        path, crc = self._state.hidden_path(mark.layer + 1), 0
        if not path.exists() or path.stat().st_size != self.nbytes:
            raise damaged(path)
        self._open(path)
        for i in range(len(self._shapes)):
            data = self._raw(i)
            crc = zlib.crc32(data, crc)
            if self._in_memory:
                self._kept[i] = self._tensor(i, data)
        if crc != mark.hidden_crc:
            raise damaged(path)

    def read(self, i: int) -> Any:
        """Batch `i` as it enters the layer."""
        return self._kept[i] if self._in_memory else self._tensor(i, self._raw(i))

    def close(self) -> None:
        """Release files and memory; a file that is being written stays incomplete."""
        if self._reader:
            self._reader.close()
        if self._writer:
            self._writer.abandon()
        self._kept = []

    def _open(self, path: Path) -> None:
        if self._reader:
            self._reader.close()
        self._reader = path.open("rb")

    def _raw(self, i: int) -> bytearray:
        assert self._reader is not None
        data = bytearray(self._offsets[i + 1] - self._offsets[i])
        self._reader.seek(self._offsets[i])
        if self._reader.readinto(data) != len(data):
            raise damaged(Path(self._reader.name))
        return data

    def _tensor(self, i: int, data: bytearray) -> Any:
        import torch

        return torch.frombuffer(data, dtype=torch.uint8).view(self._dtype).reshape(self._shapes[i])


class _Writer:
    """Writes, checksums and syncs a file in its own thread, so that the forward pass does not wait for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._queue: queue.Queue[memoryview | None] = queue.Queue(_AHEAD)
        self._crc = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, data: memoryview) -> None:
        """Append `data` without copying it; the caller must not modify it afterwards."""
        self._raise()
        self._queue.put(data)

    def finish(self) -> int:
        """Wait until everything is on disk; returns the checksum."""
        self.abandon()
        self._raise()
        return self._crc

    def abandon(self) -> None:
        """Stop after writing what was queued."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        unsynced = 0
        with self._file as file:
            while (data := self._queue.get()) is not None:
                if self._error is not None:
                    continue  # keep emptying the queue, so that `put` never blocks
                try:
                    self._crc = zlib.crc32(data, self._crc)
                    file.write(data)
                    unsynced += len(data)
                    if unsynced >= _SYNC_EVERY:
                        _sync(file)
                        unsynced = 0
                except OSError as exc:
                    self._error = exc
            try:
                _sync(file)
            except OSError as exc:
                self._error = self._error or exc


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
