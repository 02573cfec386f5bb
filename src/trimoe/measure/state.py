"""What a calibration run keeps on disk so that a kill loses at most the layer in work.

A folder beside the output: settings.json (what the run is), and after each layer L its statistics `stats-L.npz`, the
hidden states that enter the next layer `hidden-(L+1).bin`, and last, by rename, the mark `layer-L.json` with sizes and
checksums. A layer counts as finished when its mark exists. The hidden states of layer L go when those of L+1 are
marked. Invariants: data is synced before the mark; one process at a time (a lock); settings that could change a bit of
the result must be equal to go on.
"""

import fcntl
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from trimoe.artifact import write_json
from trimoe.errors import BadInput, Refused, UsageError
from trimoe.measure.accumulate import Batch


@dataclass(frozen=True)
class Mark:
    """The last finished layer: checksum of the next layer's hidden states, and how the model returns them."""

    layer: int
    seconds: float
    hidden_crc: int
    stats_crc: int
    returns_tuple: bool


class RunState:
    """The folder of one run; use as a context manager (it holds the lock)."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._lock: BinaryIO | None = None

    def __enter__(self) -> "RunState":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.close()
            raise Refused(f"another calibration works in {self.path}", expected="one process per output",
                          remedy="wait for it, or choose another -o") from exc  # fmt: skip
        known = read_settings(self.path)
        if known is None:
            write_json(self.path / "settings.json", self.settings, overwrite=True)
        elif known != json.loads(json.dumps(self.settings)):
            names = sorted(k for k in {*known, *self.settings} if known.get(k) != self.settings.get(k))
            self._lock.close()
            raise UsageError(
                f"{self.path} holds an unfinished run with other settings", expected=f"the same {', '.join(names)}",
                actual=", ".join(f"{n}: {known.get(n)} there, {self.settings.get(n)} here" for n in names)[:300],
                remedy="repeat the first command, or pass --from 0 to start over",
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()

    def hidden_path(self, layer: int) -> Path:
        """File of the hidden states that enter `layer`."""
        return self.path / f"hidden-{layer:04d}.bin"

    def _stats_path(self, layer: int) -> Path:
        return self.path / f"stats-{layer:04d}.npz"

    def finished(self) -> list[Mark]:
        """Marks of the finished layers, in order."""
        marks: list[Mark] = []
        while (path := self.path / f"layer-{len(marks):04d}.json").exists():
            marks.append(Mark(**json.loads(path.read_bytes())))
        return marks

    def commit(
        self, layer: int, results: dict[str, np.ndarray], hidden_crc: int, returns_tuple: bool, seconds: float
    ) -> None:
        """Make a layer durable; its hidden states have been written and synced before."""
        path = self._stats_path(layer)
        with path.open("wb") as out:
            np.savez(out, **results)  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        mark = Mark(layer, seconds, hidden_crc, zlib.crc32(path.read_bytes()), returns_tuple)
        write_json(self.path / f"layer-{layer:04d}.json", mark.__dict__, overwrite=True)
        self.hidden_path(layer).unlink(missing_ok=True)

    def results(self, mark: Mark) -> dict[str, np.ndarray]:
        """The arrays of a finished layer. Raises `BadInput` if the file is not what was committed."""
        path = self._stats_path(mark.layer)
        if not path.exists() or zlib.crc32(path.read_bytes()) != mark.stats_crc:
            raise self.damaged(path)
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def damaged(self, path: Path) -> BadInput:
        """The error for a file that is not what was committed."""
        return BadInput(f"{path} is missing or damaged", expected="the file as it was written by the interrupted run",
                        remedy="pass --from 0 to start over")  # fmt: skip

    def clear(self) -> None:
        """Remove everything but the lock, marks first so that a kill in between leaves no mark without its data."""
        for path in sorted(self.path.glob("layer-*.json"), reverse=True):
            path.unlink()
        for path in self.path.iterdir():
            if path.name not in ("lock", "settings.json"):
                path.unlink()

    def remove(self) -> None:
        """The run is over."""
        shutil.rmtree(self.path)


def state_path(out: Path) -> Path:
    """Where the state of a run that writes `out` lies."""
    return out.parent / f".{out.name}.calibrating"


def read_settings(path: Path) -> dict[str, Any] | None:
    """Settings of an unfinished run, or None if there is none."""
    try:
        known = json.loads((path / "settings.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise BadInput(f"{path} is damaged", remedy="remove this folder to start over") from exc
    return known if isinstance(known, dict) else None


class HiddenStates:
    """Hidden states [windows, length, H] of all batches: read for one layer while those for the next are written.

    `in_memory`: they are kept in RAM too, and the file serves only a resumed run; otherwise each batch is read from the
    file of the layer. A file is the batches one after the other, in the forward pass's type, without a header.
    """

    def __init__(self, state: RunState, batches: list[Batch], hidden: int, dtype: Any, in_memory: bool) -> None:
        self._state, self._dtype, self._in_memory = state, dtype, in_memory
        self._shapes = [(*batch.real.shape, hidden) for batch in batches]
        item = dtype.itemsize
        sizes = [int(np.prod(shape)) * item for shape in self._shapes]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._kept: list[Any] = [None] * len(batches)
        self._reader: BufferedReader | None = None
        self._writer: BinaryIO | None = None
        self.crc = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all hidden states between two layers."""
        return int(self._offsets[-1])

    def begin(self, layer: int) -> None:
        """`write` goes to the file for `layer` from now on, batch after batch."""
        self._writer, self.crc = self._state.hidden_path(layer).open("wb"), 0

    def write(self, i: int, hidden: Any) -> None:
        """Keep batch `i` for the next layer."""
        import torch

        hidden = hidden.to("cpu").contiguous()
        if self._in_memory:
            self._kept[i] = hidden
        assert self._writer is not None
        data = hidden.reshape(-1).view(torch.uint8).numpy().data
        self.crc = zlib.crc32(data, self.crc)
        self._writer.write(data)

    def end(self) -> None:
        """Sync what was written; `read` gives it from now on."""
        assert self._writer is not None
        self._writer.flush()
        os.fsync(self._writer.fileno())
        self._open(Path(self._writer.name))
        self._writer.close()

    def resume(self, mark: Mark) -> None:
        """Take up the hidden states that enter the layer after `mark`, verified."""
        path, crc = self._state.hidden_path(mark.layer + 1), 0
        if not path.exists() or path.stat().st_size != self.nbytes:
            raise self._state.damaged(path)
        self._open(path)
        for i in range(len(self._shapes)):
            data = self._raw(i)
            crc = zlib.crc32(data, crc)
            if self._in_memory:
                self._kept[i] = self._tensor(i, data)
        if crc != mark.hidden_crc:
            raise self._state.damaged(path)

    def read(self, i: int) -> Any:
        """Batch `i` as it enters the layer."""
        return self._kept[i] if self._in_memory else self._tensor(i, self._raw(i))

    def close(self) -> None:
        """Release files and memory."""
        for handle in (self._reader, self._writer):
            if handle:
                handle.close()
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
            raise self._state.damaged(Path(self._reader.name))
        return data

    def _tensor(self, i: int, data: bytearray) -> Any:
        import torch

        return torch.frombuffer(data, dtype=torch.uint8).view(self._dtype).reshape(self._shapes[i])
