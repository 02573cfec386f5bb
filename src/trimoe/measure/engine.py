"""`calibrate`: a checkpoint and a calibration set become expert statistics, one layer at a time.

All windows go through layer 0, then layer 1, and so on; weights of one layer are in memory and the next one is read
meanwhile. Hidden states between layers stay in memory or, under a memory budget, on disk. After each layer everything
is durable: a killed run goes on with the layer it was in and ends with the same bytes.
Invariants: one forward pass, nothing is computed twice; statistics are per window whatever the batching.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trimoe.artifact import require_absent, require_space, write_json, write_manifest
from trimoe.errors import CalibrationError, UsageError
from trimoe.measure.accumulate import Batch, LayerRecorder, recording
from trimoe.measure.batching import batches_of, token_ids
from trimoe.measure.calibration import CalibrationSet, Windows, documents_of, windows_of
from trimoe.measure.layers import LayerModel, tokenizer_of
from trimoe.measure.plan import Plan, Sizes, make_plan, peak_memory, reset_peak
from trimoe.measure.result import assemble
from trimoe.measure.state import HiddenStates, Mark, RunState, state_path
from trimoe.measure.stats import ExpertStats
from trimoe.model.checkpoint import Checkpoint, open_checkpoint

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Options:
    """Settings of a run. Only `dtype` and `shards` belong to the result's identity; the others are operational."""

    device: str = "cpu"
    dtype: str = "auto"
    """auto: float32 on a CPU and for float16 weights, otherwise the weights' own type."""
    shards: int = 16
    """Bootstrap shards; a document is in the shard that its content hash says."""
    batch_tokens: int = 4096
    """Tokens (with padding) per forward of one layer; a longer window makes a batch of its own."""
    ram: int | None = None
    """Memory budget in bytes; None: hidden states stay in memory if they fit into what is free."""


def calibrate(
    model_dir: Path | str,
    calibration: Path | str | CalibrationSet,
    out: Path | str,
    *,
    device: str = "cpu",
    options: Options | None = None,
    start_over: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
) -> ExpertStats:
    """Measure every expert on every class of a calibration set and write the statistics file `out`.

    An interrupted run of the same call is continued (`start_over`: begin anew). `on_plan` gets the prediction before
    the first expensive step. Beside `out` stand its manifest and `NAME.run.json` with predicted and measured needs.
    Raises `CheckpointError`, `CalibrationError`, `BadInput` (out exists), `UsageError` (an unfinished run with other
    settings), `Refused` (another process works on it), `MissingPrerequisite` (torch, memory budget, disk space).
    """
    out = Path(out)
    options = options or Options(device=device)
    if out.exists() and not state_path(out).exists():
        require_absent(out)
    checkpoint = open_checkpoint(model_dir)
    chosen = calibration if isinstance(calibration, CalibrationSet) else CalibrationSet.load(calibration)
    windows = tokenised(checkpoint, chosen, options.shards)
    run = Run(checkpoint, windows, options, chosen.name)
    if on_plan:
        on_plan(run.plan)
    with RunState(state_path(out), run.settings) as state:
        if out.exists():  # killed between publishing and cleaning up
            stats = ExpertStats.load(out)
            if any(stats.metadata.get(key) != value for key, value in run.about.items()):
                require_absent(out)
            state.remove()
            return stats
        if start_over:
            state.clear()
        require_space(out, run.plan.disk)
        stats = run.execute(state, progress)
        write_manifest(out, "statistics", run.about)
        write_json(out.with_name(out.name + ".run.json"), run.measured(), overwrite=True)
        stats.save(out)
        state.remove()
    return stats


def measure(
    checkpoint: Checkpoint, windows: Windows, options: Options, name: str, progress: Progress | None = None
) -> ExpertStats:
    """The statistics of `windows` without a file; nothing is left to resume."""
    run = Run(checkpoint, windows, options, name)
    with TemporaryDirectory() as folder, RunState(Path(folder) / "state", run.settings) as state:
        return run.execute(state, progress)


def tokenised(checkpoint: Checkpoint, chosen: CalibrationSet, shards: int) -> Windows:
    """The set as windows of this checkpoint's tokens. Raises `CalibrationError` for tokens beyond the vocabulary."""
    documents = documents_of(chosen.texts(), tokenizer_of(checkpoint.path))
    scope = checkpoint.config.get("text_config") or checkpoint.config
    vocabulary, largest = scope.get("vocab_size"), max(max(d.tokens) for d in documents)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise CalibrationError(f"token {largest} is beyond the model's vocabulary", expected=f"below {vocabulary}",
                               remedy="the tokenizer is of another model")  # fmt: skip
    return windows_of(documents, chosen.window, shards)


def compute_dtype(checkpoint: Checkpoint, options: Options) -> str:
    """The type of the forward pass: see `Options.dtype`."""
    if options.dtype != "auto":
        return options.dtype
    stored = {t.info.dtype for t in checkpoint.expert_tensors.values()}
    return "bfloat16" if stored == {"BF16"} and options.device != "cpu" else "float32"


class Run:
    """One calibration: prepared cheaply (names, shapes, plan), then executed layer by layer."""

    def __init__(self, checkpoint: Checkpoint, windows: Windows, options: Options, name: str) -> None:
        self.checkpoint, self.windows, self.options = checkpoint, windows, options
        reset_peak()
        _require_device(options.device)
        self.dtype = compute_dtype(checkpoint, options)
        self.batches = batches_of(windows, options.batch_tokens)
        self.model = LayerModel(checkpoint, options.device, self.dtype)
        on_cpu = self.model.device.type == "cpu"
        self.plan = make_plan(
            windows, self.batches, self._sizes(), options.shards, self.dtype, on_cpu, options.ram
        )  # fmt: skip
        self.about: dict[str, Any] = {
            "model": checkpoint.fingerprint, "set": windows.set_hash, "set_name": name, "dtype": self.dtype,
            "shards": options.shards,
        }  # fmt: skip
        self.seconds = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that could change a bit of the result; an interrupted run goes on only if all of it is equal."""
        import torch
        import transformers

        versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
        where = {"device": self.model.device.type, "batch_tokens": self.options.batch_tokens}
        return {**self.about, **versions, **where, "layers": self.checkpoint.num_layers}

    def _sizes(self) -> Sizes:
        checkpoint, model = self.checkpoint, self.model
        stored = max(sum(checkpoint.index[n].nbytes for n in model.names_of(i)) for i in range(checkpoint.num_layers))
        largest = max(model.nbytes_of(layer) for layer in range(checkpoint.num_layers))
        item = model.dtype.itemsize
        positions = sum(batch.real.size for batch in self.batches)
        return Sizes(
            layer=largest, stored=stored, converted=stored != largest or model.restacks(),
            embedding=model.embedding_bytes(), hidden=positions * model.hidden_size * item,
            hidden_size=model.hidden_size, item=item,
            experts=checkpoint.num_experts, layers=checkpoint.num_layers, top_k=checkpoint.top_k,
            wide=model.widest(),
        )  # fmt: skip

    def execute(self, state: RunState, progress: Progress | None = None) -> ExpertStats:
        """All layers that `state` does not have yet, then the whole."""
        import torch

        marks = state.finished()
        results = [state.results(mark) for mark in marks]
        hidden = HiddenStates(
            state, self.batches, self.model.hidden_size, self.model.dtype, self.plan.hidden_in_memory
        )  # fmt: skip
        layers = self.checkpoint.num_layers
        pool = ThreadPoolExecutor(1)
        try:
            with torch.inference_mode():
                ready = pool.submit(self.model.load, len(marks)) if len(marks) < layers else None
                if ready:
                    self._enter(hidden, marks)
                while ready:
                    layer = len(results)
                    ready.result()
                    ready = pool.submit(self.model.load, layer + 1) if layer + 1 < layers else None
                    results.append(self._layer(layer, hidden, state, progress))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            hidden.close()
        self.seconds = sum(mark.seconds for mark in state.finished())
        return assemble(results, self.windows, self.about)

    def _enter(self, hidden: HiddenStates, marks: list[Mark]) -> None:
        """Hidden states that enter the first unfinished layer: the embedding, or what the state kept."""
        if marks:
            self.model.returns_tuple = marks[-1].returns_tuple
            hidden.resume(marks[-1])
            return
        self.model.load_embedding()
        hidden.begin(0)
        for i, batch in enumerate(self.batches):
            hidden.write(i, self.model.embed(token_ids(self.windows, batch).to(self.model.device)))
        hidden.end()
        self.model.free_embedding()

    def _layer(
        self, layer: int, hidden: HiddenStates, state: RunState, progress: Progress | None
    ) -> dict[str, np.ndarray]:
        """One layer over all batches, made durable."""
        start = time.monotonic()
        count, layers = len(self.batches), self.checkpoint.num_layers
        recorder = LayerRecorder(
            len(self.windows.classes), self.options.shards, self.checkpoint.num_experts, self.model.hidden_size
        )
        last = layer + 1 == layers
        if not last:
            hidden.begin(layer + 1)
        with recording(self.model.experts(layer), self.model.router(layer), recorder):
            for i, batch in enumerate(self.batches):
                entering = hidden.read(i).to(self.model.device)
                leaving = self._forward(layer, batch, entering, recorder)
                if not last:
                    hidden.write(i, leaving)
                if progress:
                    progress(layer * count + i + 1, layers * count, f"layer {layer + 1} of {layers}")
        self.model.free(layer)
        if not last:
            hidden.end()
        result = recorder.result()
        state.commit(layer, result, hidden.crc, self.model.returns_tuple, time.monotonic() - start)
        return result

    def _forward(self, layer: int, batch: Batch, entering: Any, recorder: LayerRecorder) -> Any:
        recorder.begin(batch, entering)
        return self.model.run(layer, entering)

    def measured(self) -> dict[str, Any]:
        """What the run took beside what was predicted; operational, so it never enters the statistics file."""
        peak: dict[str, Any] = {"ram": peak_memory()}
        if self.model.device.type == "cuda":
            import torch

            peak["device"] = torch.cuda.max_memory_allocated(self.model.device)
        return {"plan": self.plan.as_dict(), "peak": peak, "layer_seconds": round(self.seconds, 3)}


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise UsageError(f"device {device} cannot be used", expected="cpu, cuda or cuda:N of this machine",
                         actual=str(exc).splitlines()[0][:200], remedy="choose another --device") from exc  # fmt: skip
