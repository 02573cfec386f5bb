"""`trimoe calibrate`: expert statistics of a checkpoint on a calibration set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimoe.cli.common import emit, json_option, progress, require_extra
from trimoe.cli.stats import leak_lines

if TYPE_CHECKING:
    from trimoe.measure.leaks import BenchTexts


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "set_path",
    required=True,
    type=click.Path(path_type=Path),
    help="Calibration set (YAML), or a shipped one: generic.",
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
    leak_check: tuple[str, ...],
    data: Path | None,
    as_json: bool,
) -> None:
    """Measure what every expert of MODEL contributes on a calibration set.

    \b
    Examples:
      trimoe calibrate gemma-4-26B-A4B-it --set coding.yaml -o stats.safetensors
      trimoe calibrate MODEL --set SET.yaml -o STATS --device cuda
      trimoe calibrate MODEL --set generic -o STATS --leak-check humaneval.jsonl --leak-check tiny-code
    """
    require_extra("torch", "calibrate")
    from trimoe.measure.engine import Options
    from trimoe.measure.engine import calibrate as run
    from trimoe.measure.replies import path_beside

    with progress("calibrate") as report:
        options = Options(device=device, dtype=dtype)
        benches = benches_of(leak_check, data)
        stats = run(model, set_path, out, options=options, benches=benches, progress=report)
    classes, layers, experts = stats.shape
    lines = [f"{out}: {classes} classes, {layers} layers, {experts} experts"]
    for name, tokens in stats.metadata["tokens"].items():
        lines.append(f"  {name:24s} {tokens:9,d} tokens  {stats.metadata['nonfinite'][name]} masked")
    if made := stats.metadata.get("replies"):
        lines.append(f"{made['rows']} replies of the model itself are in {path_beside(out)}")
    lines += leak_lines(stats.metadata["leak_check"]) if leak_check else []
    emit({"stats": str(out), "shape": list(stats.shape), **stats.metadata}, "\n".join(lines), as_json)


def benches_of(names: Sequence[str], data: Path | None) -> list["BenchTexts"]:
    """The benches of --leak-check: a path is read as it is, anything else is the name of a bench."""
    from trimoe.evaluate.bench import find
    from trimoe.measure.leaks import BenchTexts, read_benches

    result = []
    for name in names:
        if Path(name).exists():
            result += read_benches(Path(name))
            continue
        items = tuple((doc.doc_id, (doc.prompt, doc.reference)) for doc in find([name])[0].docs(data))
        result.append(BenchTexts(name, items))
    return result


COMMANDS = [calibrate]
