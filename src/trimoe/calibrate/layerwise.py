"""One calibration run, layer by layer: all windows through layer 0, then through layer 1, and so on.

Weights of one layer are in memory while the next layer is read (unless the memory budget forbids it); hidden states
between layers are in memory or on disk. After each layer everything is durable, see `state`.
Invariants: one forward pass, nothing is computed twice; a resumed run gives the same result as an undisturbed one.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimoe.calibrate.forward.batching import batches_of, token_ids
from trimoe.calibrate.forward.hidden import HiddenStates
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.forward.recording import masking, recording
from trimoe.calibrate.plan import LayerSizes, Sizes, make_plan, peak_memory, reset_peak
from trimoe.calibrate.recon.layer import Reconstruction
from trimoe.calibrate.recon.sample import sample_for
from trimoe.calibrate.state import Mark, RunState
from trimoe.calibrate.stats.accumulate import LayerRecorder
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import Shape
from trimoe.calibrate.stats.result import assemble
from trimoe.calibrate.text.calibration import Windows
from trimoe.errors import UsageError
from trimoe.io.progress import Progress
from trimoe.io.watch import Watch
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.dequantize.plan import is_quantized
from trimoe.model.neurons import cannot_narrow, neuron_unit


@dataclass(frozen=True)
class Options:
    """Settings of a run. `device`, `batch_tokens` and `ram` are operational; all others are part of the result's
    identity."""

    device: str = "cpu"
    dtype: str = "auto"
    """auto: float32 on a CPU and for float16 weights, otherwise the weights' own type; bfloat16 for quantized ones."""
    shards: int = 16
    """Bootstrap shards; the content hash of a document decides its shard."""
    coactivation: bool = False
    """Also count, for every pair of experts, the tokens routed to both."""
    neurons: bool = False
    """Also sum the squared activation of every inner neuron."""
    recon: int | None = None
    """Reply positions on which the greedy reconstruction orders each layer's experts; 0: none. None: 2000 where the set
    has replies and the family's router is of a known form."""
    sequential: int | None = None
    """Cut each layer to this many experts by reconstruction before the next layer is measured."""
    batch_tokens: int | None = None
    """Tokens, padding included, per forward pass of one layer; a longer window is a batch of its own. None: 4096 on a
    CPU, 8192 on an accelerator."""
    ram: int | None = None
    """Memory budget in bytes; None: 80 % of what is free."""


class Run:
    """A run that is prepared cheaply (names, shapes, plan) and then executed layer by layer."""

    def __init__(self, checkpoint: Checkpoint, windows: Windows, options: Options, name: str) -> None:
        self.checkpoint, self.windows, self.options = checkpoint, windows, options
        self.watch: Watch | None = None
        reset_peak()
        _require_device(options.device)
        dtype = compute_dtype(checkpoint, options)
        self.model = LayerModel(checkpoint, options.device, dtype)
        on_cpu = self.model.device.type == "cpu"
        self._batch_tokens = options.batch_tokens or (4096 if on_cpu else 8192)
        self.batches = batches_of(windows, self._batch_tokens)
        self._vocabulary = np.unique(np.concatenate([[0], *(w.tokens for w in windows.windows)]))
        self.shape = Shape(
            len(windows.classes),
            options.shards,
            checkpoint.num_experts,
            self.model.hidden_size,
            self.model.inner_size,
            options.coactivation,
            options.neurons,
            windows.kinds if len(windows.kinds) > 1 else (),
            windows.answered if "prompt" in windows.kinds else (),
        )
        self.sample = sample_for(checkpoint, windows, options.recon, options.sequential)
        self.plan = make_plan(
            windows,
            self.batches,
            self._sizes(),
            self.shape,
            dtype,
            on_cpu,
            options.ram,
            reconstructed=len(self.sample or ()),
        )
        self.about: dict[str, Any] = {
            "model": checkpoint.fingerprint,
            "set": windows.set_hash,
            "set_name": name,
            "dtype": dtype,
            "shards": options.shards,
            "coactivation": options.coactivation,
            "neurons": options.neurons,
            "recon": len(self.sample or ()),
            "sequential": options.sequential,
        }
        if checkpoint.warnings:  # `map` repeats them: an unknown model_type may route in another way
            self.about["model_notes"] = checkpoint.warnings
        if checkpoint.groups is not None:
            self.about["groups"] = asdict(checkpoint.groups)
        if options.neurons and cannot_narrow(checkpoint) is None:
            self.about["neuron_unit"] = neuron_unit(checkpoint)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that could change a bit of the result; an interrupted run resumes only if all of it is equal."""
        import torch
        import transformers

        versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
        where = {"device": self.model.device.type, "batch_tokens": self._batch_tokens}
        return {**self.about, **versions, **where, "layers": self.checkpoint.num_layers}

    def _sizes(self) -> Sizes:
        model = self.model
        return Sizes(
            layers=[
                LayerSizes(model.nbytes_of(i), model.loading_bytes(i), model.widest(i))
                for i in range(self.checkpoint.num_layers)
            ],
            embedding=len(self._vocabulary) * model.hidden_size * model.dtype.itemsize,
            item=model.dtype.itemsize,
            top_k=self.checkpoint.top_k,
        )

    def execute(
        self, state: RunState, progress: Progress | None = None, on_layer: Callable[[Mark], None] | None = None
    ) -> ExpertStats:
        """Run the layers that `state` does not have, and assemble the statistics. `on_layer` gets each finished layer's
        mark."""
        import torch

        marks = state.finished()
        results = [state.results(mark) for mark in marks]
        layers = self.checkpoint.num_layers
        hidden = HiddenStates(state, self.batches, self.model.hidden_size, self.model.dtype, self.plan.hidden_in_memory)
        pool = ThreadPoolExecutor(1)
        try:
            with torch.inference_mode():
                if len(marks) < layers:
                    ready = pool.submit(self.model.load, len(marks))
                    self._enter(hidden, marks)
                for layer in range(len(marks), layers):
                    ready.result()
                    ahead = layer + 1 < layers and self.plan.prefetch
                    if ahead:
                        ready = pool.submit(self.model.load, layer + 1)
                    result, mark = self._layer(layer, hidden, progress)
                    state.commit(result, mark)
                    results.append(result)
                    if on_layer:
                        on_layer(mark)
                    if layer + 1 < layers and not ahead:
                        ready = pool.submit(self.model.load, layer + 1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            hidden.close()
        return assemble(results, self.windows, self.about, self.checkpoint.moe_layers)

    def _enter(self, hidden: HiddenStates, marks: list[Mark]) -> None:
        """Prepare the hidden states that enter the first unfinished layer: the embedding, or those of the state."""
        if marks:
            self.model.returns_tuple = marks[-1].returns_tuple
            hidden.resume(marks[-1])
            return
        self.model.load_embedding(self._vocabulary)
        hidden.begin(0)
        for i, batch in enumerate(self.batches):
            hidden.write(i, self.model.embed(token_ids(self.windows, batch)))
        hidden.end()
        self.model.free_embedding()

    def _layer(self, layer: int, hidden: HiddenStates, progress: Progress | None) -> tuple[dict[str, np.ndarray], Mark]:
        """Run one layer over all batches: its statistics, and its mark."""
        start = time.monotonic()
        layers, count = self.checkpoint.num_layers, len(self.batches)
        has_experts = self.model.experts(layer) is not None
        recon = Reconstruction(self.sample) if self.sample and has_experts else None
        recorder = LayerRecorder(self.shape, self.model.device, recon)
        last, twice = layer + 1 == layers, self.options.sequential is not None and has_experts
        if not last:
            hidden.begin(layer + 1)
        with self._recorded(layer, recorder):
            for i, batch in enumerate(self.batches):
                entering = hidden.read(i).to(self.model.device)
                recorder.begin(batch, entering)
                leaving = self.model.run(layer, entering)
                if not last and not twice:
                    hidden.write(i, leaving)
                if progress:
                    progress(layer * count + i + 1, layers * count, f"layer {layer + 1} of {layers}")
        found: dict[str, np.ndarray] = {}
        if recon is not None:
            dropped, found = self._reconstruct(layer, recon)
            if twice and not last:
                self._run_cut(layer, hidden, dropped)
        self.model.free(layer)
        crc = 0 if last else hidden.end()
        took = time.monotonic() - start
        return recorder.result() | found, Mark(
            layer, crc, 0, self.model.returns_tuple, took, peak_memory(), self._peak_device()
        )

    def _reconstruct(self, layer: int, recon: Reconstruction) -> tuple[list[int], dict[str, np.ndarray]]:
        model = self.model
        norm = model.norm_after_experts(layer)
        score = self.checkpoint.hf.routing.score
        return recon.order(model.experts(layer), model.router(layer), norm, self.shape.classes, score, f"layer {layer}")

    def _run_cut(self, layer: int, hidden: HiddenStates, dropped: list[int]) -> None:
        """The layer once more without the experts that go first: what enters the next layer of the cut model."""
        keep = self.options.sequential or self.shape.experts
        with masking(self.model.router(layer), dropped[: self.shape.experts - keep], self.shape.experts):
            for i in range(len(self.batches)):
                hidden.write(i, self.model.run(layer, hidden.read(i).to(self.model.device)))

    def _recorded(self, layer: int, recorder: LayerRecorder) -> Any:
        experts = self.model.experts(layer)
        return nullcontext() if experts is None else recording(experts, self.model.router(layer), recorder)

    def _peak_device(self) -> int:
        """Peak bytes on the accelerator; 0 on a CPU."""
        import torch

        return int(torch.cuda.max_memory_allocated(self.model.device)) if self.model.device.type == "cuda" else 0


def compute_dtype(checkpoint: Checkpoint, options: Options) -> str:
    """The type of the forward pass, see `Options.dtype`."""
    if options.dtype != "auto":
        return options.dtype
    stored = {t.info.dtype for t in checkpoint.expert_tensors.values()}
    half = stored == {"BF16"} or is_quantized(checkpoint)
    return "bfloat16" if half and options.device != "cpu" else "float32"


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise UsageError(
            f"device {device} cannot be used",
            expected="cpu, cuda or cuda:N of this machine",
            actual=str(exc).splitlines()[0][:200],
            remedy="choose another --device",
        ) from exc
