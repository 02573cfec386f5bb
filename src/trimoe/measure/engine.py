"""`calibrate`: a checkpoint and a calibration set become expert statistics, one layer at a time.

All windows go through layer 0, then layer 1, and so on; weights of one layer are in memory and the next one is read
meanwhile. Hidden states between layers stay in memory or on disk. After each layer everything is durable: a killed run
goes on with the layer it was in, and ends with the same bytes.
Invariants: one forward pass, nothing is computed twice; statistics are per window whatever the batching.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.artifact import require_absent
from trimoe.measure.accumulate import Batch, LayerRecorder, recording
from trimoe.measure.calibration import CalibrationSet, Windows
from trimoe.measure.layers import LayerModel
from trimoe.measure.leaks import BenchTexts
from trimoe.measure.replies import path_beside
from trimoe.measure.result import assemble
from trimoe.measure.stats import ExpertStats
from trimoe.measure.tokenise import tokenise
from trimoe.model.checkpoint import Checkpoint, open_checkpoint

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Options:
    """Settings of a run. Only `shards` and `dtype` belong to the result's identity; the others are operational."""

    device: str = "cpu"
    dtype: str = "auto"
    """auto: float32 on a CPU and for float16 weights, otherwise the weights' own type."""
    shards: int = 16
    """Bootstrap shards; a document is in the shard that its content hash says."""
    batch_tokens: int = 4096
    """Tokens (with padding) per forward of one layer; a longer window makes a batch of its own."""


def calibrate(
    model_dir: Path | str,
    calibration: Path | str | CalibrationSet,
    out: Path | str,
    *,
    device: str = "cpu",
    options: Options | None = None,
    benches: Sequence[BenchTexts] = (),
    progress: Progress | None = None,
) -> ExpertStats:
    """Measure every expert on every class of a calibration set and write the statistics file `out`.

    `benches` are compared with the set (13-grams); the report is in the statistics' metadata.
    Raises `CheckpointError`, `CalibrationError`, `BadInput` (out exists), `MissingPrerequisite` (torch, disk space).
    """
    out = Path(out)
    options = options or Options(device=device)
    require_absent(out)
    checkpoint = open_checkpoint(model_dir)
    chosen = calibration if isinstance(calibration, CalibrationSet) else CalibrationSet.load(calibration)
    windows = tokenise(
        checkpoint, chosen, options.shards, replies=path_beside(out), device=options.device,
        dtype=compute_dtype(checkpoint, options), benches=benches, progress=progress,
    )  # fmt: skip
    stats = measure(checkpoint, windows, options, chosen.name, progress)
    stats.save(out)
    return stats


def tokenised(checkpoint: Checkpoint, chosen: CalibrationSet, shards: int) -> Windows:
    """The set as windows of this checkpoint's tokens; a set of prompts without replies needs `calibrate`."""
    return tokenise(checkpoint, chosen, shards)


def batches_of(windows: Windows, batch_tokens: int) -> list[Batch]:
    """Micro-batches of one class and weight, longest windows first so that little is padded."""
    groups: dict[tuple[int, float], list[int]] = {}
    for i, window in enumerate(windows.windows):
        groups.setdefault((window.category, window.weight), []).append(i)
    result = []
    for category, weight in sorted(groups):
        rest = sorted(groups[category, weight], key=lambda i: (-len(windows.windows[i].tokens), i))
        while rest:
            length = len(windows.windows[rest[0]].tokens)
            chosen, rest = rest[: max(1, batch_tokens // length)], rest[max(1, batch_tokens // length) :]
            real, counted = np.zeros((len(chosen), length), bool), np.zeros((len(chosen), length), bool)
            for row, i in enumerate(chosen):
                real[row, : len(windows.windows[i].tokens)] = True
                counted[row, : len(windows.windows[i].tokens)] = windows.windows[i].counted
            shards = np.array([windows.windows[i].shard for i in chosen])
            result.append(Batch(category, length, tuple(chosen), shards, weight, counted, real))
    return result


def compute_dtype(checkpoint: Checkpoint, options: Options) -> str:
    """The type of the forward pass: see `Options.dtype`."""
    if options.dtype != "auto":
        return options.dtype
    stored = {t.info.dtype for t in checkpoint.expert_tensors.values()}
    return "bfloat16" if stored == {"BF16"} and options.device != "cpu" else "float32"


def measure(
    checkpoint: Checkpoint, windows: Windows, options: Options, name: str, progress: Progress | None = None
) -> ExpertStats:
    """The statistics of `windows`; see the module's docstring for how."""
    import torch

    dtype = compute_dtype(checkpoint, options)
    batches = batches_of(windows, options.batch_tokens)
    model = LayerModel(checkpoint, options.device, dtype)
    results: list[dict[str, np.ndarray]] = []
    total = checkpoint.num_layers * len(batches)
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        model.load_embedding()
        hidden = [model.embed(_padded(windows, batch).to(model.device)) for batch in batches]
        model.free_embedding()
        ready: Future[None] = pool.submit(model.load, 0)
        for layer in range(checkpoint.num_layers):
            ready.result()
            if layer + 1 < checkpoint.num_layers:
                ready = pool.submit(model.load, layer + 1)
            recorder = LayerRecorder(len(windows.classes), options.shards, checkpoint.num_experts, model.hidden_size)
            with recording(model.experts(layer), model.router(layer), recorder):
                for i, batch in enumerate(batches):
                    recorder.begin(batch, hidden[i])
                    hidden[i] = model.run(layer, hidden[i])
                    if progress:
                        progress(layer * len(batches) + i + 1, total, f"layer {layer}")
            model.free(layer)
            results.append(recorder.result())
    about = {"set_name": name, "dtype": dtype, "shards": options.shards, "moe_layers": list(checkpoint.moe_layers)}
    return assemble(results, windows, checkpoint.fingerprint, about)


def _padded(windows: Windows, batch: Batch) -> Any:
    import torch

    tokens = np.zeros(batch.real.shape, np.int64)
    for row, i in enumerate(batch.windows):
        tokens[row, : len(windows.windows[i].tokens)] = windows.windows[i].tokens
    return torch.from_numpy(tokens)
