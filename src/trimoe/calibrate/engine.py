"""`calibrate`: a checkpoint and a calibration set become expert statistics, in the memory of one layer, resumable.

Beside the statistics file OUT stand its manifest (`OUT.manifest.json`: what it is a function of) and `OUT.run.json`
(what the run was predicted to need and what it took). While the run goes on, `.OUT.calibrating` holds its state.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trimoe.calibrate.layerwise import Options, Run, compute_dtype
from trimoe.calibrate.plan import COVERAGE
from trimoe.calibrate.state import Mark, RunState, state_path
from trimoe.calibrate.stats.accumulate import COUNT
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.text.calibration import CalibrationSet, Windows
from trimoe.calibrate.text.leaks import BenchTexts
from trimoe.calibrate.text.replies import path_beside
from trimoe.calibrate.text.tokenise import tokenise
from trimoe.errors import Interrupted, UsageError
from trimoe.io.progress import Progress
from trimoe.io.publish import require_absent, require_space, write_json, write_manifest
from trimoe.model.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Options", "calibrate", "measure", "prepare", "tokenised", "write_statistics"]


def calibrate(
    model_dir: Path | str,
    calibration: Path | str | CalibrationSet,
    out: Path | str,
    *,
    options: Options | None = None,
    benches: Sequence[BenchTexts] = (),
    start_at: int | None = None,
    on_layer: Callable[[Mark], None] | None = None,
    progress: Progress | None = None,
) -> ExpertStats:
    """Measure every expert on every class of a calibration set and write the statistics file `out`.

    An interrupted run of the same call goes on (`start_at` 0: begin anew). `on_layer` gets the mark of each layer that
    is finished. `benches` are compared with the set (13-grams); the report is in the statistics' metadata.
    Raises `CheckpointError`, `CalibrationError`, `BadInput` (out exists), `UsageError` (an unfinished run with other
    settings), `Refused` (another process works on it), `MissingPrerequisite` (torch, memory budget, disk space),
    `Interrupted` (Ctrl-C; finished layers are kept).
    """
    run = prepare(model_dir, calibration, options, Path(out), benches=benches, progress=progress)
    return write_statistics(run, Path(out), start_at=start_at, on_layer=on_layer, progress=progress)


def prepare(
    model_dir: Path | str,
    calibration: Path | str | CalibrationSet,
    options: Options | None = None,
    out: Path | None = None,
    *,
    benches: Sequence[BenchTexts] = (),
    progress: Progress | None = None,
) -> Run:
    """Everything before the layers: the checkpoint opened, the set read, answered and tokenised, the plan made.

    With `out`, a statistics file that is there already is refused before anything else, and prompts that the model
    has to answer are answered into a file beside it. Without, nothing is written and answers are only allowed for.
    """
    if out is not None and not state_path(out).exists():
        require_absent(out)
    options = options or Options()
    checkpoint = open_checkpoint(model_dir)
    chosen = calibration if isinstance(calibration, CalibrationSet) else CalibrationSet.load(calibration)
    windows = tokenise(
        checkpoint,
        chosen,
        options.shards,
        replies=path_beside(out) if out else None,
        plan_only=out is None,
        device=options.device,
        dtype=compute_dtype(checkpoint, options),
        benches=benches,
        progress=progress,
    )
    return Run(checkpoint, windows, options, chosen.name)


def write_statistics(
    run: Run,
    out: Path,
    *,
    start_at: int | None = None,
    on_layer: Callable[[Mark], None] | None = None,
    progress: Progress | None = None,
) -> ExpertStats:
    """Execute a prepared run, or what is left of it, and publish `out`; see `calibrate`."""
    layers = run.checkpoint.num_layers
    with RunState(state_path(out), run.settings, start_over=start_at == 0) as state:
        if out.exists():
            return _published(out, run, state)
        done = len(state.finished())
        if start_at not in (None, 0, done):
            raise UsageError(
                f"cannot go on from layer {start_at}",
                expected=f"0 to start over, or {done}, the first unfinished one",
                actual=f"hidden states are kept for layer {done} only",
                remedy="leave out --from to go on",
            )
        require_space(out, max(0, run.plan.disk - state.nbytes))
        try:
            stats = run.execute(state, progress, on_layer)
        except KeyboardInterrupt as exc:
            done = len(state.finished())
            raise Interrupted(
                f"calibration stopped: {done} of {layers} layers are finished and kept",
                actual=str(state.path),
                remedy="run the same command again to go on; --status shows the state, --from 0 starts over",
            ) from exc
        about = {key: value for key, value in run.windows.origin.items() if key != "document_hashes"}
        write_manifest(out, "statistics", {**about, **run.about})
        write_json(report_path(out), _report(run, stats, state.finished()), overwrite=True)
        stats.save(out)
        state.remove()
    return stats


def measure(checkpoint: Checkpoint, windows: Windows, options: Options, name: str) -> ExpertStats:
    """The statistics of `windows` without a file; nothing is left to resume."""
    run = Run(checkpoint, windows, options, name)
    with TemporaryDirectory() as folder, RunState(Path(folder) / "state", run.settings) as state:
        return run.execute(state)


def tokenised(checkpoint: Checkpoint, chosen: CalibrationSet, shards: int) -> Windows:
    """The set as windows of this checkpoint's tokens; a set of prompts without replies needs `calibrate`."""
    return tokenise(checkpoint, chosen, shards)


def report_path(out: Path) -> Path:
    """Where the needs of the run that wrote `out` are kept. They differ from run to run, so not in the file itself."""
    return out.with_name(out.name + ".run.json")


def coverage(stats: ExpertStats) -> dict[str, dict[str, int]]:
    """Per class: how many experts (over all layers that have any) got fewer than `COVERAGE` tokens, and none at all."""
    routed = stats.field(COUNT)[:, stats.metadata["moe_layers"]]
    return {
        name: {
            "experts": routed[i].size,
            "thin": int((routed[i] < COVERAGE).sum()),
            "unused": int((routed[i] == 0).sum()),
        }
        for i, name in enumerate(stats.classes)
    }


def _report(run: Run, stats: ExpertStats, marks: list[Mark]) -> dict[str, Any]:
    peaks = {"ram": max(m.peak_ram for m in marks), "device": max(m.peak_device for m in marks)}
    seconds = [round(m.seconds, 3) for m in marks]
    return {
        "plan": run.plan.as_dict(),
        "peak": peaks,
        "seconds_per_layer": seconds,
        "coverage": coverage(stats),
        "thin_below": COVERAGE,
    }


def _published(out: Path, run: Run, state: RunState) -> ExpertStats:
    """The run was killed between publishing and cleaning up: check that the file is its own, and clean up."""
    stats = ExpertStats.load(out)
    if any(stats.metadata.get(key) != value for key, value in run.about.items()):
        require_absent(out)
    state.remove()
    return stats
