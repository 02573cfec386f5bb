"""`trimoe calibrate`: expert statistics of a checkpoint on a calibration set."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimoe.cli.parts.common import emit, json_option, parse_size, progress, require_extra, show_size
from trimoe.cli.stats import leak_lines
from trimoe.io.progress import Progress

if TYPE_CHECKING:
    from trimoe.calibrate.state import Mark
    from trimoe.calibrate.stats.expert_stats import ExpertStats
    from trimoe.calibrate.text.leaks import BenchTexts


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "set_path",
    required=True,
    type=click.Path(path_type=Path),
    help="Calibration set (YAML), or the shipped `generic`.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Statistics file to write.")
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
    "--from",
    "start_at",
    type=click.IntRange(min=0),
    metavar="LAYER",
    help="0 starts over; any other must be the first unfinished layer (the default).",
)
@click.option("--dry-run", is_flag=True, help="Print what the run would need and stop.")
@click.option("--status", "show_status", is_flag=True, help="Say how far the run that writes OUT is, and stop.")
@click.option(
    "--leak-check",
    "leak_check",
    multiple=True,
    metavar="PATH|BENCH",
    help="Report 13-word overlaps of the set with a bench: its file or folder of rows, or its name. May be repeated.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of local dataset files, for benches given to --leak-check by name.",
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
    start_at: int | None,
    dry_run: bool,
    show_status: bool,
    leak_check: tuple[str, ...],
    data: Path | None,
    as_json: bool,
) -> None:
    """Measure each expert's contribution on a calibration set.

    One decoder layer is in memory at a time, the next is read meanwhile. Finished layers are kept: after Ctrl-C or a
    crash the same command goes on. OUT appears only when it is complete.

    \b
    Examples:
      trimoe calibrate gemma-4-26B-A4B-it --set coding.yaml -o stats.safetensors
      trimoe calibrate MODEL --set SET.yaml -o STATS --ram 8GB
      trimoe calibrate MODEL --set SET.yaml -o STATS --device cuda
      trimoe calibrate MODEL --set generic -o STATS --leak-check humaneval.jsonl --leak-check tiny-code
      trimoe calibrate MODEL --set SET.yaml -o STATS --dry-run
      trimoe calibrate MODEL --set SET.yaml -o STATS --status
    """
    budget = None if ram is None else parse_size(ram, "--ram 8GB")
    if show_status:
        return _show_status(out, as_json)
    require_extra("torch", "calibrate")
    from trimoe.calibrate.engine import Options, prepare, write_statistics

    options = Options(device, dtype, shards, coactivation, neurons, batch_tokens, budget)
    benches = benches_of(leak_check, data)
    with progress("answer") as report:
        prepared = prepare(model, set_path, options, None if dry_run else out, benches=benches, progress=report)
    leaks = leak_lines(prepared.windows.origin["leak_check"]) if benches else []
    plan = prepared.plan
    if dry_run:
        found = {"leak_check": prepared.windows.origin["leak_check"]} if benches else {}
        return emit({"plan": plan.as_dict(), **found}, "\n".join([*plan.lines(), *leaks]), as_json)
    if not as_json:
        click.echo("\n".join([*plan.lines(), *leaks]))
    with progress("calibrate") as report:
        teller = _Teller(plan.layers, report, as_json)
        stats = write_statistics(prepared, out, start_at=start_at, on_layer=teller.layer, progress=teller.progress)
    _show_result(out, stats, as_json)


class _Teller:
    """Says after the first layer how long the rest will take: on the progress bar, or in a line where there is none."""

    def __init__(self, layers: int, report: Progress, as_json: bool) -> None:
        self._layers, self._report, self._left = layers, report, ""
        self._line_due = not as_json and not sys.stderr.isatty()

    def layer(self, mark: "Mark") -> None:
        """A layer is finished."""
        left = mark.seconds * (self._layers - mark.layer - 1)
        self._left = f", about {_duration(left)} left" if left else ""
        if self._line_due and left:
            click.echo(f"layer {mark.layer + 1} of {self._layers} took {_duration(mark.seconds)}{self._left}")
        self._line_due = False

    def progress(self, done: int, total: int, note: str) -> None:
        """A batch is done."""
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
    lines[-1] += f"; layers took {_duration(sum(report['seconds_per_layer']))}"
    if made := stats.metadata.get("replies"):
        lines.append(f"{made['rows']} replies of the model itself are in {path_beside(out)}")
    metadata = {key: value for key, value in stats.metadata.items() if key != "document_hashes"}
    emit({"stats": str(out), "shape": list(stats.shape), "run": report, **metadata}, "\n".join(lines), as_json)


def _show_status(out: Path, as_json: bool) -> None:
    from trimoe.calibrate.state import status

    found = status(out)
    text = f"{out}: {found['state']}"
    if "layers" in found:
        text += f", {found['layers_finished']} of {found['layers']} layers finished, {show_size(found['disk'])} on disk"
        if found["seconds_left"] is not None:
            text += f", about {_duration(found['seconds_left'])} left"
    elif found["state"] == "none":
        text = f"{out}: no calibration was begun, or none has finished a layer"
    emit(found, text, as_json)


def _duration(seconds: float) -> str:
    """Time for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def benches_of(names: Sequence[str], data: Path | None) -> list["BenchTexts"]:
    """The benches of --leak-check: a path is read as it is, anything else is the name of a bench."""
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
