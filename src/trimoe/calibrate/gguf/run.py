"""Expert statistics of a GGUF model: the same file as from a checkpoint, measured by llama.cpp.

Invariants: the program adds up in float64, batch after batch, and writes its sums by rename, so a killed run that is
repeated ends with the same bytes as an undisturbed one. Weights are mapped: the model need not fit into memory, but
then each batch reads all of it once, so `batch_tokens` decides how often.
Not guaranteed: bits equal to a checkpoint's statistics; llama.cpp's kernels round otherwise.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.calibrate.forward.batching import Batch, batches_of
from trimoe.calibrate.gguf.program import measure, version_of
from trimoe.calibrate.gguf.replies import gguf_answerer
from trimoe.calibrate.gguf.tokenizer import GgufTokenizer
from trimoe.calibrate.layerwise import Options
from trimoe.calibrate.plan import COVERAGE, GB, Plan, available_memory, required_tokens
from trimoe.calibrate.state import BatchState, state_path
from trimoe.calibrate.stats.coverage import coverage
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import (
    BY_KIND,
    COACTIVATION,
    COUNT,
    MAXIMA,
    MEAN_VECTOR,
    NEURON_CONTRIBUTION,
    NEURONS,
    Shape,
    kind_field,
)
from trimoe.calibrate.stats.result import assemble
from trimoe.calibrate.text.calibration import CalibrationSet, Windows
from trimoe.calibrate.text.leaks import BenchTexts
from trimoe.calibrate.text.replies import answered, path_beside
from trimoe.calibrate.text.tokenise import Limits, Texts, tokenised_by
from trimoe.calibrate.text.windows import POSITIONS, Window
from trimoe.errors import CheckpointError, Interrupted, MissingPrerequisite, UsageError
from trimoe.io.atomic import require_absent, require_space
from trimoe.io.canonical import sha256_json
from trimoe.io.jsonfile import write_json
from trimoe.io.manifest import write_manifest
from trimoe.io.progress import Progress
from trimoe.io.watch import Watch
from trimoe.llamacpp.tools import LlamaCpp, locate
from trimoe.model.gguf.file import parts
from trimoe.model.gguf.model import GgufModel, open_gguf_model

_LOGITS = 1 << 27
"""Logits in memory at once: llama.cpp computes them for every position of a decode."""
_BASE = 60 << 20
"""Bytes of the program itself."""
_DOWN = "ffn_down_exps"
SAVE_SECONDS = 20.0
"""Between two states on disk: what a kill loses at most, beside the batch in flight."""


@dataclass(frozen=True)
class GgufPlan(Plan):
    """`peak_ram` is what the program allocates; `mapped` bytes of weights come beside it and may be dropped again."""

    mapped: int = 0

    @property
    def how(self) -> str:
        """The strategy in words."""
        return (
            f"{self.mapped / GB:.2f} GB of weights are mapped, and read once per batch where memory does not hold them"
        )


class GgufRun:
    """A run that is prepared: windows, batches, plan."""

    def __init__(self, model: GgufModel, windows: Windows, options: Options, name: str, tools: LlamaCpp) -> None:
        self.model, self.windows, self.options, self.tools = model, windows, options, tools
        self.watch: Watch | None = None
        vocabulary = len(model.gguf.get("tokenizer.ggml.tokens") or ()) or 1 << 18
        self.batch_tokens = options.batch_tokens or min(4096, max(128, _LOGITS // vocabulary))
        self.batches = batches_of(windows, self.batch_tokens)
        self.layers = model.num_layers - len(model.predicting_layers)
        self.moe_layers = [layer for layer in model.moe_layers if layer < self.layers]
        down = next(t.info for t in model.expert_tensors.values() if t.role == f"{_DOWN}.weight")
        _, hidden, inner = down.shape
        self.shape = Shape(
            len(windows.classes),
            options.shards,
            model.num_experts,
            hidden,
            inner,
            options.coactivation,
            options.neurons,
            windows.kinds if len(windows.kinds) > 1 else (),
            windows.answered if "prompt" in windows.kinds else (),
        )
        self.about: dict[str, Any] = {
            "model": model.fingerprint,
            "set": windows.set_hash,
            "set_name": name,
            "dtype": "gguf",
            "shards": options.shards,
            "coactivation": options.coactivation,
            "neurons": options.neurons,
            "engine": {"llama.cpp": version_of(tools)},
        }
        self.plan = self._plan(vocabulary)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that could change a bit of the result."""
        return {
            **self.about,
            "batch_tokens": self.batch_tokens,
            "layers": self.layers,
            "batches": len(self.batches),
        }

    def _plan(self, vocabulary: int) -> GgufPlan:
        tokens = required_tokens(self.windows, self.shape.experts)
        arrays = 8 * sum(np.prod(shape, dtype=np.int64) for shape in self.arrays().values())
        peak = int(arrays + _BASE + self._working_memory(vocabulary))
        budget = self.options.ram
        if budget is not None and peak > budget:
            raise MissingPrerequisite(
                "the memory budget is too small for this run",
                expected=f"--ram of at least {peak / GB + 0.01:.2f}GB",
                actual=f"{budget / GB:.2f}GB",
                remedy="raise --ram, lower --batch-tokens, or shorten `window` in the set",
            )
        if budget is None and peak > available_memory():
            raise MissingPrerequisite(
                "memory is too small for this run",
                expected=f"{peak / GB:.2f} GB beside the weights",
                actual=f"{available_memory() / GB:.2f} GB available",
                remedy="lower --batch-tokens, or shorten `window` in the set",
            )
        padded = sum(batch.real.size for batch in self.batches)
        return GgufPlan(
            tokens=tokens,
            tokens_per_expert={n: count * self.model.top_k / self.shape.experts for n, count in tokens.items()},
            layers=self.layers,
            windows=len(self.windows.windows),
            batches=len(self.batches),
            padding=1 - sum(len(batch.places) for batch in self.batches) / padded,
            dtype="the file's own types",
            hidden_in_memory=True,
            prefetch=False,
            peak_ram=peak,
            peak_device=0,
            disk=int(2 * arrays),
            mapped=self.model.nbytes,
        )

    def _working_memory(self, vocabulary: int) -> int:
        """Bytes of llama.cpp's caches and of the largest decode.

        Measured in all: 0.22 GB where 0.20 were predicted, and 0.32 where 0.71 were.
        """
        positions = max(batch.real.size for batch in self.batches)
        length = max(batch.length for batch in self.batches)
        width = self._largest("embedding_length") or self.shape.hidden
        heads = self._largest("attention.head_count") or 1
        keys = (self._largest("attention.head_count_kv") or heads) * (
            self._largest("attention.key_length") or width // heads
        )
        cache = 8 * positions * keys * self.layers  # keys and values in float32
        experts = self.model.top_k * 2 * (self.shape.inner + self.shape.hidden)
        values = 2 * vocabulary + experts + heads * length + 8 * width
        return cache + 4 * min(positions, self.batch_tokens) * values

    def _largest(self, key: str) -> int | None:
        """A count of the metadata; of one per layer, the largest. None if it is absent or of another type."""
        value = self.model.gguf.get(f"{self.model.architecture}.{key}")
        counts = [int(v) for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]
        return max(counts, default=None) or None

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the program's results, in the order of its state file."""
        s, layers = self.shape, self.layers
        cells = (s.classes, layers, s.experts)
        return {
            "sums": (len(s.sums), s.classes, s.shards, layers, s.experts),
            "maxima": (len(MAXIMA), *cells),
            COUNT: cells,
            "masked": (2, s.classes, layers),
            "vectors": (*cells, s.hidden),
            COACTIVATION: (*cells, s.experts if s.coactivation else 0),
            NEURONS: (*cells, s.inner if s.neurons else 0),
            NEURON_CONTRIBUTION: (*cells, s.inner if s.neurons else 0),
            "columns": (*cells[1:], s.inner if s.neurons else 0),
        }

    def job(self, identity: str) -> dict[str, Any]:
        """The job of `trimoe-expert-stats measure`."""
        names = {tensor.role for tensor in self.model.expert_tensors.values()}
        scale = "none"
        if f"{_DOWN}.scale" in names:
            scale = "weight" if self.model.names.router_scale == f"{_DOWN}.scale" else "output"
        s = self.shape
        return {
            "classes": s.classes,
            "shards": s.shards,
            "layers": self.layers,
            "experts": s.experts,
            "hidden": s.hidden,
            "inner": s.inner,
            "coactivation": s.coactivation,
            "neurons": s.neurons,
            "kinds": len(s.kinds),
            "prompt": s.kinds.index("prompt") if "prompt" in s.kinds else -1,
            "answered": list(s.answered) or [False] * s.classes,
            "bias": f"{_DOWN}.bias" in names,
            "scale": scale,
            "threads": threads(),
            "batch_tokens": self.batch_tokens,
            "save_seconds": SAVE_SECONDS,
            "identity": identity,
            "windows": [_window(window, s.kinds) for window in self.windows.windows],
            "batches": [_batch(batch) for batch in self.batches],
        }

    def execute(self, state: BatchState, progress: Progress | None = None) -> tuple[ExpertStats, dict[str, Any]]:
        """Run the batches that `state` does not have; the statistics, and what the program reports about its run."""
        identity = sha256_json(self.settings)
        job = state.path / "job.json"
        write_json(job, self.job(identity), overwrite=True)
        start = time.monotonic()
        ran = measure(self.tools, self.model.path, job, state.sums_path, progress)
        ran["seconds"] = time.monotonic() - start
        if ran["ran"] and (unseen := sorted(set(self.moe_layers) - set(ran["layers"]))):
            raise CheckpointError(
                f"llama.cpp's graph of {self.model.architecture} hides the experts of layer {unseen[0]}",
                expected=f"a product with blk.{unseen[0]}.{_DOWN}.weight",
                actual=f"layers {ran['layers']} were seen",
                remedy="calibrate the checkpoint instead",
            )
        return self._statistics(state.read(self.arrays()), ran["fields"]), ran

    def _statistics(self, found: dict[str, np.ndarray], names: Sequence[str]) -> ExpertStats:
        """The program's arrays as statistics; `names` are its fields in their order."""
        fields = [*names, *(kind_field(kind, name) for kind in self.shape.kinds for name in names if name in BY_KIND)]
        sums = dict(zip(fields, found["sums"], strict=True))
        count = sums["tc"].sum(1)  # [class, layer, expert]
        length = np.sqrt(np.square(found["vectors"]).sum(-1))
        mean = np.divide(length, count, out=np.zeros_like(length), where=count > 0)
        layers = []
        for layer in range(self.layers):
            result = {name: sums[name][:, :, layer] for name in self.shape.sums}
            result |= {name: found["maxima"][i][:, layer] for i, name in enumerate(MAXIMA)}
            result |= {COUNT: found[COUNT][:, layer], MEAN_VECTOR: mean[:, layer]}
            result |= {name: found[name][:, layer] for name in (COACTIVATION, NEURONS) if found[name].size}
            if found[NEURON_CONTRIBUTION].size:
                result[NEURON_CONTRIBUTION] = found[NEURON_CONTRIBUTION][:, layer] * found["columns"][layer]
            result["masked_tokens"], result["masked_outputs"] = found["masked"][:, :, layer]
            layers.append(result)
        return assemble(layers, self.windows, self.about, self.moe_layers)


def threads() -> int:
    """Cores that this process may use. Their number changes no bit of a result."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_gguf(
    path: Path,
    calibration: CalibrationSet | Path | str,
    options: Options,
    out: Path | None,
    *,
    benches: Sequence[BenchTexts] = (),
    progress: Progress | None = None,
) -> GgufRun:
    """Everything before the measurement; as `engine.prepare`. Raises `MissingPrerequisite` without llama.cpp."""
    if out is not None and not state_path(out).exists():
        require_absent(out)
    if options.device != "cpu" or options.dtype != "auto":
        raise UsageError(
            "a GGUF model is measured by llama.cpp on the CPU, in the types of the file",
            expected="neither --device nor --dtype",
            actual=f"--device {options.device} --dtype {options.dtype}",
            remedy="leave them out",
        )
    if options.recon or options.sequential:
        raise UsageError(
            "layers of a GGUF model cannot be reconstructed",
            expected="neither --recon nor --sequential",
            actual=f"--recon {options.recon or 0} --sequential {options.sequential or 'none'}",
            remedy="calibrate the checkpoint, or leave them out and choose with --recipe reap-replies",
        )
    watch = Watch(path, "measured", lambda: parts(path))
    model = open_gguf_model(path)
    tools = locate()
    chosen = calibration if isinstance(calibration, CalibrationSet) else CalibrationSet.load(calibration)
    tokenizer = GgufTokenizer(model, tools)

    def fill(texts: Texts) -> tuple[Texts, dict[str, Any]]:
        answerer = gguf_answerer(model, tokenizer, tools, threads())
        return answered(texts, answerer, tokenizer, path_beside(out) if out else None, progress=progress)

    try:
        limits = Limits(len(tokenizer.get_vocab()), model.gguf.integer(f"{model.architecture}.context_length"))
        windows = tokenised_by(tokenizer, limits, chosen, options.shards, None if out is None else fill, benches)
    finally:
        tokenizer.close()
    run = GgufRun(model, windows, options, chosen.name, tools)
    run.watch = watch
    return run


def write_gguf_statistics(
    run: GgufRun, out: Path, *, start_at: int | None = None, progress: Progress | None = None
) -> ExpertStats:
    """Execute a prepared run, or the rest of an interrupted one, and publish `out`."""
    if start_at not in (None, 0):
        raise UsageError(
            "a GGUF model is not measured layer by layer",
            expected="--from 0 to start over, or no --from to resume",
            actual=f"--from {start_at}",
        )
    with BatchState(state_path(out), run.settings, start_over=start_at == 0) as state:
        if out.exists():
            return _published(out, run, state)
        require_space(out, max(0, run.plan.disk - state.nbytes))
        try:
            stats, ran = run.execute(state, progress)
        except KeyboardInterrupt as exc:
            raise Interrupted(
                "calibration stopped; finished batches are kept",
                actual=str(state.path),
                remedy="run the same command again to resume; --from 0 starts over",
            ) from exc
        if run.watch is not None:
            try:
                run.watch.require_unchanged()
            except CheckpointError:
                state.remove()
                raise
        about = {key: value for key, value in run.windows.origin.items() if key != "document_hashes"}
        write_manifest(out, "statistics", {**about, **run.about})
        write_json(out.with_name(out.name + ".run.json"), _report(run, stats, ran), overwrite=True)
        stats.save(out)
        state.remove()
    return replace(stats, path=out)


def _report(run: GgufRun, stats: ExpertStats, ran: dict[str, Any]) -> dict[str, Any]:
    return {
        "plan": run.plan.as_dict(),
        "peak": {"ram": ran["peak_ram"], "device": 0},
        "seconds": round(ran["seconds"], 3),
        "coverage": coverage(stats, COVERAGE),
        "thin_below": COVERAGE,
    }


def _published(out: Path, run: GgufRun, state: BatchState) -> ExpertStats:
    """Finish a run that was killed after publishing."""
    stats = ExpertStats.load(out)
    if any(stats.metadata.get(key) != value for key, value in run.about.items()):
        require_absent(out)
    state.remove()
    return stats


def _window(window: Window, kinds: tuple[str, ...]) -> dict[str, Any]:
    entry = {
        "class": window.category,
        "shard": window.shard,
        "weight": window.weight,
        "tokens": window.tokens.tolist(),
    }
    if kinds:
        positions = np.zeros(len(window.tokens), np.uint8) if window.positions is None else window.positions
        # a kind without counted positions is not among `kinds`
        entry["kinds"] = [kinds.index(name) if (name := POSITIONS[i]) in kinds else -1 for i in positions]
    return entry if window.counted.all() else entry | {"counted": np.flatnonzero(window.counted).tolist()}


def _batch(batch: Batch) -> dict[str, Any]:
    return {"length": batch.length, "windows": list(batch.windows)}
