"""The state of a calibration run on disk, from which a killed run resumes; a kill loses at most the current layer.

A folder beside the output: settings.json (identity of the run), and after each layer L its statistics `stats-L.npz`,
the hidden states that enter the next layer `hidden-(L+1).bin`, and last, by rename, the mark `layer-L.json` with
checksums. A layer is finished when its mark exists. The hidden states of layer L are removed once those of L+1 are
marked. Invariants: data is synced before the mark; a lock allows one process at a time; a run resumes only if every
setting that could change a bit of the result is equal. A folder without a mark is reused.
"""

import fcntl
import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.io.jsonfile import write_json

SUMS_FILE = "sums.bin"


@dataclass(frozen=True)
class Mark:
    """A finished layer: checksums, how the model returns hidden states, time and memory."""

    layer: int
    hidden_crc: int
    stats_crc: int
    returns_tuple: bool
    seconds: float
    peak_ram: int
    peak_device: int


@dataclass(frozen=True)
class RunProgress:
    """Progress of the run in a state folder."""

    settings: dict[str, Any]
    marks: list[Mark]
    running: bool
    """Another process is working on it."""
    nbytes: int
    """Size of the state folder in bytes."""
    batches: int = 0
    """Finished batches of a run that is not by layer."""

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return int(self.settings["layers"])

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean of the finished layers; None before the first."""
        if not self.marks:
            return None
        return sum(mark.seconds for mark in self.marks) / len(self.marks) * (self.layers - len(self.marks))


class RunState:
    """The folder of one run. Use as a context manager, which holds the lock."""

    def __init__(self, path: Path, settings: dict[str, Any], *, start_over: bool = False) -> None:
        self.path, self.settings, self._start_over = path, settings, start_over
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._adopt()
        except BlockingIOError as exc:
            self._lock.close()
            raise Refused(
                f"another calibration is using {self.path}",
                expected="one process per output",
                actual="the folder is locked",
                remedy="wait for it to finish, or choose another -o",
            ) from exc
        except BaseException:
            self._lock.close()
            raise
        return self

    def _adopt(self) -> None:
        """Resume the run, or begin anew with `start_over` or if no layer is finished."""
        if self._start_over or not self.begun():
            self.clear()
            write_json(self.path / "settings.json", self.settings, overwrite=True)
            return
        known, wanted = read_settings(self.path), json.loads(json.dumps(self.settings))
        if known != wanted:
            names = sorted(k for k in {*known, *wanted} if known.get(k) != wanted.get(k))
            raise UsageError(
                f"{self.path} holds an unfinished run with other settings",
                expected=f"the same {', '.join(names)}",
                actual="; ".join(f"{n} was {known.get(n)}, is {wanted.get(n)}" for n in names)[:300],
                remedy="repeat the first command to resume, or pass --from 0 to start over",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.path.exists() and not self.begun():
            self.remove()
        if self._lock:
            self._lock.close()

    def begun(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(read_marks(self.path))

    def hidden_path(self, layer: int) -> Path:
        """File of the hidden states that enter `layer`."""
        return self.path / f"hidden-{layer:04d}.bin"

    def _stats_path(self, layer: int) -> Path:
        return self.path / f"stats-{layer:04d}.npz"

    def finished(self) -> list[Mark]:
        """Marks of the finished layers, in order."""
        return read_marks(self.path)

    @property
    def nbytes(self) -> int:
        """Size of the state folder in bytes."""
        return folder_bytes(self.path)

    def commit(self, results: dict[str, np.ndarray], mark: Mark) -> None:
        """Store a layer durably, after its hidden states were written and synced. Fills in `stats_crc`."""
        path = self._stats_path(mark.layer)
        with path.open("wb") as out:
            np.savez(out, **results)  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        body = asdict(mark) | {"stats_crc": zlib.crc32(path.read_bytes())}
        write_json(self.path / f"layer-{mark.layer:04d}.json", body, overwrite=True)
        self.hidden_path(mark.layer).unlink(missing_ok=True)

    def results(self, mark: Mark) -> dict[str, np.ndarray]:
        """The arrays of a finished layer. Raises `BadInput` if the file was changed."""
        path = self._stats_path(mark.layer)
        if not path.exists() or zlib.crc32(path.read_bytes()) != mark.stats_crc:
            raise damaged(path)
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def clear(self) -> None:
        """Remove everything but the lock, marks first, so that a kill leaves no mark without its data."""
        for path in sorted(self.path.glob("layer-*.json"), reverse=True):
            path.unlink()
        for path in self.path.iterdir():
            if path.name != "lock":
                path.unlink()

    def remove(self) -> None:
        """Remove the folder at the end of the run, marks first."""
        self.clear()
        shutil.rmtree(self.path)


class BatchState(RunState):
    """The folder of a run whose sums are kept by the program that computes them, batch after batch."""

    @property
    def sums_path(self) -> Path:
        """One line of JSON, then arrays of float64; replaced by rename."""
        return self.path / SUMS_FILE

    def begun(self) -> bool:
        """Whether there is anything to resume from."""
        return self.sums_path.exists()

    def read(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The arrays of the sums. Raises `BadInput` if the file is not complete."""
        with self.sums_path.open("rb") as file:
            file.readline()
            values = np.fromfile(file, "<f8")
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
        if len(values) != sum(sizes):
            raise damaged(self.sums_path)
        ends = np.cumsum(sizes)[:-1]
        split = np.split(values, ends)
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), split, strict=True)}


def state_path(out: Path) -> Path:
    """The state folder of a run that writes `out`."""
    return out.parent / f".{out.name}.calibrating"


def progress_of(path: Path) -> RunProgress | None:
    """Progress of the run in a state folder, without disturbing it; None if there is none."""
    if not (path / "lock").exists():
        return None
    with (path / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            running = False
        except BlockingIOError:
            running = True
    marks, batches = read_marks(path), _batches_done(path)
    if not marks and not batches and not running:
        return None
    return RunProgress(read_settings(path), marks, running, folder_bytes(path), batches)


def status(out: Path | str) -> dict[str, Any]:
    """Progress of the calibration that writes `out`; reads files only. `state` is none, unfinished, running or
    finished; times are in seconds, sizes in bytes."""
    out = Path(out)
    found = progress_of(state_path(out))
    if found is None:
        return {"stats": str(out), "state": "finished" if out.exists() else "none"}
    if "batches" in found.settings:
        done = {"batches_finished": found.batches, "batches": found.settings["batches"]}
        state = "running" if found.running else "unfinished"
        return {"stats": str(out), "state": state, **done, "disk": found.nbytes, "settings": found.settings}
    return {
        "stats": str(out),
        "state": "running" if found.running else "unfinished",
        "layers_finished": len(found.marks),
        "layers": found.layers,
        "seconds_per_layer": [round(mark.seconds, 3) for mark in found.marks],
        "seconds_left": found.seconds_left,
        "disk": found.nbytes,
        "settings": found.settings,
    }


def read_marks(path: Path) -> list[Mark]:
    """Marks of the finished layers, in order. Raises `BadInput` for a damaged one."""
    marks: list[Mark] = []
    while (file := path / f"layer-{len(marks):04d}.json").exists():
        try:
            marks.append(Mark(**json.loads(file.read_bytes())))
        except (ValueError, TypeError) as exc:
            raise damaged(file) from exc
    return marks


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of the run in a state folder. Raises `BadInput`."""
    try:
        known = json.loads((path / "settings.json").read_bytes())
        if not isinstance(known, dict) or type(known.get("layers")) is not int:
            raise ValueError("not the settings of a run")
    except (OSError, ValueError) as exc:
        raise damaged(path / "settings.json") from exc
    return known


def _batches_done(path: Path) -> int:
    """Finished batches in the sums of a run; 0 without any."""
    try:
        with (path / SUMS_FILE).open("rb") as file:
            return int(json.loads(file.readline(4096))["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def folder_bytes(path: Path) -> int:
    """Bytes of the files in a folder; files that disappear meanwhile are not counted."""
    total = 0
    for file in path.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def damaged(path: Path) -> BadInput:
    """The error for a file of the state that is missing or changed."""
    return BadInput(
        f"{path} is missing or damaged",
        expected="the file as the interrupted run wrote it",
        remedy="pass --from 0 to start over",
    )
