"""`trimoe calibrate`: expert statistics of a model on a calibration set."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimoe.cli.parts.common import emit, json_option, progress, require_extra, show_size
from trimoe.cli.parts.stats_text import leak_lines
from trimoe.io.sizes import parse_bytes

if TYPE_CHECKING:
    from trimoe.calibrate.gguf.run import GgufRun
    from trimoe.calibrate.layerwise import Run
    from trimoe.calibrate.state import Mark
    from trimoe.calibrate.stats.expert_stats import ExpertStats
    from trimoe.calibrate.text.calibration import CalibrationSet
    from trimoe.calibrate.text.leaks import BenchTexts


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "set_path",
    required=True,
    type=click.Path(path_type=Path),
    help="Calibration set (YAML), or a shipped one: `generic`, or `my-prompts` for your prompts in my-prompts.jsonl.",
)
@click.option(
    "-o", "--out", "--output", required=True, type=click.Path(path_type=Path), help="Statistics file to write."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Type of the forward pass; auto is float32 on a CPU, else the weights' own.",
)
@click.option("--ram", metavar="SIZE", help="Memory budget, for example 8GB. Default: 80 % of what is free.")
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), help="Tokens per forward. Default: 4096 on a CPU, else 8192."
)
@click.option(
    "--shards",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Bootstrap shards, for the uncertainty of ranks.",
)
@click.option("--coactivation", is_flag=True, help="Also count for every pair of experts the tokens sent to both.")
@click.option("--neurons", is_flag=True, help="Also sum the squared activation of every inner neuron of every expert.")
@click.option(
    "--recon",
    type=click.IntRange(min=0),
    metavar="N",
    help="Reply positions on which recipe `recon` is found; 0: none. Default: 2000 if the set has replies.",
)
@click.option(
    "--sequential",
    type=click.IntRange(min=1),
    metavar="KEEP",
    help="Cut each layer to KEEP experts by reconstruction before the next is measured.",
)
@click.option(
    "--from",
    "start_at",
    type=click.IntRange(min=0),
    metavar="LAYER",
    help="0 starts over; any other value must be the first unfinished layer (the default).",
)
@click.option("--dry-run", is_flag=True, help="Print the predicted memory and disk needs, and stop.")
@click.option("--status", "show_status", is_flag=True, help="Print the progress of the run that writes OUT, and stop.")
@click.option(
    "--leak-check",
    "leak_check",
    multiple=True,
    metavar="PATH|BENCH",
    help="Report 13-word overlaps of the set with a bench: its file or folder of rows, or its name. Repeatable.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with files of the set that are not beside it, and with data sets for --leak-check by name.",
)
@json_option
def calibrate(
    model: Path,
    set_path: Path,
    out: Path,
    device: str,
    dtype: str,
    ram: str | None,
    batch_tokens: int | None,
    shards: int,
    coactivation: bool,
    neurons: bool,
    recon: int | None,
    sequential: int | None,
    start_at: int | None,
    dry_run: bool,
    show_status: bool,
    leak_check: tuple[str, ...],
    data: Path | None,
    as_json: bool,
) -> None:
    """Measure each expert's contribution on a calibration set.

    MODEL is a checkpoint directory or a .gguf file. Of a checkpoint, one decoder layer is in memory at a time while the
    next is being read, and finished layers are kept: after Ctrl-C or a crash, the same command resumes. A GGUF file is
    run by llama.cpp, which maps its weights; finished batches are kept. OUT appears only when it is complete.

    \b
    Examples:
      trimoe calibrate gemma-4-26B-A4B-it --set coding.yaml -o stats.safetensors
      trimoe calibrate gemma-4-26B-A4B-it-Q4_K_M.gguf --set coding.yaml -o stats.safetensors
      trimoe calibrate MODEL --set SET.yaml -o STATS --ram 8GB
      trimoe calibrate MODEL --set SET.yaml -o STATS --device cuda
      trimoe calibrate MODEL --set generic -o STATS --leak-check humaneval.jsonl --leak-check tiny-code
      trimoe calibrate MODEL --set SET.yaml -o STATS --dry-run
      trimoe calibrate MODEL --set SET.yaml -o STATS --status
    """
    if show_status:
        return _show_status(out, as_json)
    from trimoe.model.gguf.file import find_gguf

    gguf = find_gguf(model)
    if gguf is None:
        require_extra("torch", "calibrate")
    from trimoe.calibrate.engine import Options, prepare
    from trimoe.calibrate.engine import calibrate as run
    from trimoe.calibrate.gguf.run import prepare_gguf
    from trimoe.calibrate.text.calibration import CalibrationSet

    budget = None if ram is None else parse_bytes(ram, "--ram 8GB")
    options = Options(device, dtype, shards, coactivation, neurons, recon, sequential, batch_tokens, budget)
    benches = benches_of(leak_check, data)
    chosen = CalibrationSet.load(set_path, data=data)
    _warn_of_recipes(chosen)
    with _Display(as_json) as display:
        if dry_run and gguf is not None:
            prepared: Run | GgufRun = prepare_gguf(gguf, chosen, options, None, benches=benches)
        elif dry_run:
            prepared = prepare(model, chosen, options, benches=benches, progress=display.progress)
        else:
            stats = run(
                model,
                chosen,
                out,
                **vars(options),
                benches=benches,
                start_at=start_at,
                on_prepared=display.prepared,
                on_layer=display.layer,
                progress=display.progress,
            )
    if dry_run:
        leaks = prepared.windows.origin.get("leak_check")
        found = {"leak_check": leaks} if leaks else {}
        return emit({"plan": prepared.plan.as_dict(), **found}, "\n".join(_plan_lines(prepared)), as_json)
    _show_result(out, stats, as_json)


def _warn_of_recipes(chosen: "CalibrationSet") -> None:
    """Say before the work, not after it, that the default recipe of `map` will refuse these classes."""
    from trimoe.choose.floor import refusing_recipes

    refusing = refusing_recipes(chosen.classes)
    if "v5-coder" in refusing:
        click.echo(
            f"warning: the set has only targeted classes ({', '.join(chosen.classes)}). `trimoe map` will refuse these "
            f"statistics with the recipes {', '.join(refusing)}, which need a generic class too. Add one "
            "(generic_...) or rename a class, or make the map with --recipe reap or --floor none. The shipped set "
            "`my-prompts` works with every recipe.",
            err=True,
        )


def _plan_lines(run: "Run | GgufRun") -> list[str]:
    leaks = run.windows.origin.get("leak_check")
    notes = [f"warning: {note}" for note in run.about.get("model_notes", ())]
    return [*notes, *run.plan.lines(), *(leak_lines(leaks) if leaks else [])]


class _Display:
    """Progress of a run: a bar per phase, the plan between them, and after the first layer how long the rest takes.

    The time left is on the bar, or printed once where standard error is not a terminal.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._bar, self._layers, self._left = as_json, ExitStack(), 0, ""
        self._line_due = not as_json and not sys.stderr.isatty()
        self._report = self._bar.enter_context(progress("calibrate"))

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def prepared(self, run: "Run | GgufRun") -> None:
        """Print the plan before the first layer; a live bar would divert the text to standard error."""
        self._bar.close()
        if not self._as_json:
            click.echo("\n".join(_plan_lines(run)))
        self._layers = run.plan.layers
        self._report = self._bar.enter_context(progress("calibrate"))

    def layer(self, mark: "Mark") -> None:
        """A layer is finished."""
        left = mark.seconds * (self._layers - mark.layer - 1)
        self._left = f", about {_duration(left)} left" if left else ""
        if self._line_due and left:
            click.echo(f"layer {mark.layer + 1} of {self._layers} took {_duration(mark.seconds)}{self._left}")
        self._line_due = False

    def progress(self, done: int, total: int, note: str) -> None:
        """A reply or a batch is done."""
        self._report(done, total, note + self._left)


def _show_result(out: Path, stats: "ExpertStats", as_json: bool) -> None:
    from trimoe.calibrate.engine import report_path
    from trimoe.calibrate.text.replies import path_beside

    report = json.loads(report_path(out).read_bytes())
    classes, layers, experts = stats.shape
    lines = [f"{out}: {classes} classes, {layers} layers, {experts} experts"]
    for name, tokens in stats.metadata["tokens"].items():
        row = report["coverage"][name]
        thin = f", {row['thin']} of {row['experts']} experts with fewer than {report['thin_below']} tokens"
        thin += f" ({row['unused']} with none)" if row["unused"] else ""
        masked = stats.metadata["nonfinite"][name]
        lines.append(f"  {name:24s} {tokens:>12,d} tokens, {masked} masked{thin if row['thin'] else ''}")
    peak, plan = report["peak"], report["plan"]
    lines.append(f"memory at most {show_size(peak['ram'])} (predicted {show_size(plan['peak_ram'])})")
    if plan["peak_device"]:
        lines[-1] += f", device {show_size(peak['device'])} (predicted {show_size(plan['peak_device'])})"
    took = report["seconds"] if "seconds" in report else sum(report["seconds_per_layer"])
    lines[-1] += f"; {'it' if 'seconds' in report else 'layers'} took {_duration(took)}"
    if made := stats.metadata.get("replies"):
        lines.append(f"{made['rows']} replies of the model itself are in {path_beside(out)}")
    metadata = {key: value for key, value in stats.metadata.items() if key != "document_hashes"}
    emit({"stats": str(out), "shape": list(stats.shape), "run": report, **metadata}, "\n".join(lines), as_json)


def _show_status(out: Path, as_json: bool) -> None:
    from trimoe.calibrate.state import status

    found = status(out)
    text = f"{out}: {found['state']}"
    if "batches" in found:
        text += (
            f", {found['batches_finished']} of {found['batches']} batches finished, {show_size(found['disk'])} on disk"
        )
    elif "layers" in found:
        text += f", {found['layers_finished']} of {found['layers']} layers finished, {show_size(found['disk'])} on disk"
        if found["seconds_left"] is not None:
            text += f", about {_duration(found['seconds_left'])} left"
    elif found["state"] == "none":
        text = f"{out}: no calibration has finished a layer"
    emit(found, text, as_json)


def _duration(seconds: float) -> str:
    """A duration such as 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def benches_of(names: Sequence[str], data: Path | None) -> list["BenchTexts"]:
    """The benches of --leak-check: an existing path is read, anything else is the name of a bench."""
    from trimoe.bench.catalog import find
    from trimoe.calibrate.text.leaks import BenchTexts, read_benches

    result = []
    for name in names:
        if Path(name).exists():
            result += read_benches(Path(name))
            continue
        items = tuple((doc.doc_id, (doc.prompt, doc.reference)) for doc in find([name])[0].docs(data))
        result.append(BenchTexts(name, items))
    return result


COMMANDS = [calibrate]
