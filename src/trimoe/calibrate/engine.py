"""`calibrate`: a checkpoint and a calibration set become expert statistics, layer by layer, resumable.

Invariants: one decoder layer (and the next, being read) is in memory at a time; an interrupted run that is repeated
ends with the same bytes as an undisturbed one. Beside the statistics file OUT are its manifest (`OUT.manifest.json`:
what it is a function of) and `OUT.run.json` (predicted and measured needs). During the run, `.OUT.calibrating` holds
its state.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trimoe.calibrate.gguf.run import GgufRun, prepare_gguf, write_gguf_statistics
from trimoe.calibrate.layerwise import Options, Run, compute_dtype
from trimoe.calibrate.plan import COVERAGE
from trimoe.calibrate.state import Mark, RunState, state_path
from trimoe.calibrate.stats.coverage import coverage
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.text.calibration import CalibrationSet, Windows
from trimoe.calibrate.text.leaks import BenchTexts, read_benches
from trimoe.calibrate.text.replies import path_beside
from trimoe.calibrate.text.tokenise import tokenise
from trimoe.errors import CheckpointError, Interrupted, UsageError
from trimoe.io.atomic import require_absent, require_space
from trimoe.io.jsonfile import write_json
from trimoe.io.manifest import write_manifest
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.device import require_device
from trimoe.model.files import watch_directory
from trimoe.model.gguf.file import find_gguf

__all__ = ["Options", "calibrate", "measure", "prepare", "tokenised", "write_statistics"]


def calibrate(
    model: Checkpoint | str | os.PathLike[str],
    calibration: CalibrationSet | Path | str,
    out: Path | str,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    shards: int = 16,
    coactivation: bool = False,
    neurons: bool = False,
    recon: int | None = None,
    sequential: int | None = None,
    batch_tokens: int | None = None,
    ram: int | None = None,
    benches: Sequence[BenchTexts | Path | str] = (),
    start_at: int | None = None,
    on_prepared: Callable[[Run | GgufRun], None] | None = None,
    on_layer: Callable[[Mark], None] | None = None,
    progress: Progress | None = None,
) -> ExpertStats:
    """Measure what every expert contributes to each class of a calibration set, and write the statistics file `out`.

    `calibration` is a set file or the name of a shipped set. `device`, `dtype`, `shards`, `coactivation`, `neurons`,
    `recon`, `sequential`, `batch_tokens` and `ram` (bytes) are the fields of `Options`. `benches` (files of rows, or
    `BenchTexts`) are compared with the set by 13-grams; the report is in the metadata of the statistics.

    The same call resumes an interrupted run; `start_at` 0 starts over. `on_prepared` gets the run with its plan before
    the first layer, `on_layer` the mark of each finished layer.

    Raises `CheckpointError`, `CalibrationError`, `BadInput` (`out` exists), `UsageError` (an unfinished run with other
    settings), `Refused` (another process works on it), `MissingPrerequisite` (torch, memory budget, disk space),
    `Interrupted` (Ctrl-C; finished layers are kept).

    >>> stats = trimoe.calibrate(model, "tasks.yaml", out="stats.safetensors")
    >>> stats
    ExpertStats(1 class, 4 layers, 32 experts; model 56fd32a947fb1979)
    """
    out = Path(out)
    options = Options(device, dtype, shards, coactivation, neurons, recon, sequential, batch_tokens, ram)
    if not isinstance(model, Checkpoint) and (file := find_gguf(Path(model))) is not None:
        texts = [text for bench in benches for text in _texts_of(bench)]
        measured = prepare_gguf(file, calibration, options, out, benches=texts, progress=progress)
        if on_prepared:
            on_prepared(measured)
        return write_gguf_statistics(measured, out, start_at=start_at, progress=progress)
    run = prepare(model, calibration, options, out, benches=benches, progress=progress)
    if on_prepared:
        on_prepared(run)
    return write_statistics(run, out, start_at=start_at, on_layer=on_layer, progress=progress)


def prepare(
    model: Checkpoint | str | os.PathLike[str],
    calibration: CalibrationSet | Path | str,
    options: Options | None = None,
    out: Path | None = None,
    *,
    benches: Sequence[BenchTexts | Path | str] = (),
    progress: Progress | None = None,
) -> Run:
    """Everything before the layers: open the checkpoint, read, answer and tokenise the set, make the plan.

    With `out`, an existing statistics file is refused first, and prompts that the model has to answer are answered into
    a file beside it. Without `out`, nothing is written or generated, and the plan assumes the longest answers.
    """
    if out is not None and not state_path(out).exists():
        require_absent(out)
    options = options or Options()
    require_device(options.device)
    watch = watch_directory(Path(model), "measured")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    chosen = calibration if isinstance(calibration, CalibrationSet) else CalibrationSet.load(calibration)
    windows = tokenise(
        checkpoint,
        chosen,
        options.shards,
        replies=path_beside(out) if out else None,
        plan_only=out is None,
        device=options.device,
        dtype=compute_dtype(checkpoint, options),
        benches=[text for bench in benches for text in _texts_of(bench)],
        progress=progress,
    )
    run = Run(checkpoint, windows, options, chosen.name)
    run.watch = watch
    return run


def write_statistics(
    run: Run,
    out: Path,
    *,
    start_at: int | None = None,
    on_layer: Callable[[Mark], None] | None = None,
    progress: Progress | None = None,
) -> ExpertStats:
    """Execute a prepared run, or the rest of an interrupted one, and publish `out`; see `calibrate`."""
    layers = run.checkpoint.num_layers
    with RunState(state_path(out), run.settings, start_over=start_at == 0) as state:
        if out.exists():
            return _published(out, run, state)
        done = len(state.finished())
        if start_at not in (None, 0, done):
            raise UsageError(
                f"cannot resume at layer {start_at}",
                expected=f"0 to start over, or {done}, the first unfinished layer",
                actual=f"hidden states are kept for layer {done} only",
                remedy="leave out --from to resume",
            )
        require_space(out, max(0, run.plan.disk - state.nbytes))
        try:
            stats = run.execute(state, progress, on_layer)
        except KeyboardInterrupt as exc:
            done = len(state.finished())
            raise Interrupted(
                f"calibration stopped: {done} of {layers} layers are finished and kept",
                actual=str(state.path),
                remedy="run the same command again to resume; --status shows the state, --from 0 starts over",
            ) from exc
        if run.watch is not None:
            try:
                run.watch.require_unchanged()
            except CheckpointError:
                state.remove()  # its layers are of two states of the model
                raise
        about = {key: value for key, value in run.windows.origin.items() if key != "document_hashes"}
        write_manifest(out, "statistics", {**about, **run.about})
        write_json(report_path(out), _report(run, stats, state.finished()), overwrite=True)
        stats.save(out)
        state.remove()
    return replace(stats, path=out)


def measure(checkpoint: Checkpoint, windows: Windows, options: Options, name: str) -> ExpertStats:
    """The statistics of `windows`, without a file and without a state to resume."""
    run = Run(checkpoint, windows, options, name)
    with TemporaryDirectory() as folder, RunState(Path(folder) / "state", run.settings) as state:
        return run.execute(state)


def tokenised(checkpoint: Checkpoint, chosen: CalibrationSet, shards: int) -> Windows:
    """The set as windows of this checkpoint's tokens. Prompts without replies are refused: `calibrate` answers them."""
    return tokenise(checkpoint, chosen, shards)


def report_path(out: Path) -> Path:
    """Where the needs of the run that wrote `out` are recorded: they differ from run to run, so not in the file."""
    return out.with_name(out.name + ".run.json")


def _texts_of(bench: BenchTexts | Path | str) -> Sequence[BenchTexts]:
    return [bench] if isinstance(bench, BenchTexts) else read_benches(Path(bench))


def _report(run: Run, stats: ExpertStats, marks: list[Mark]) -> dict[str, Any]:
    peaks = {"ram": max(m.peak_ram for m in marks), "device": max(m.peak_device for m in marks)}
    seconds = [round(m.seconds, 3) for m in marks]
    return {
        "plan": run.plan.as_dict(),
        "peak": peaks,
        "seconds_per_layer": seconds,
        "coverage": coverage(stats, COVERAGE),
        "thin_below": COVERAGE,
    }


def _published(out: Path, run: Run, state: RunState) -> ExpertStats:
    """Finish a run that was killed after publishing: check that the file is its own, and remove the state."""
    stats = ExpertStats.load(out)
    if any(stats.metadata.get(key) != value for key, value in run.about.items()):
        require_absent(out)
    state.remove()
    return stats
