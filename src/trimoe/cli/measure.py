"""`trimoe calibrate`: expert statistics of a checkpoint on a calibration set."""

from pathlib import Path

import click

from trimoe.cli.common import emit, json_option, progress, require_extra


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--set", "set_path", required=True, type=click.Path(path_type=Path), help="Calibration set (YAML).")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Statistics file to write.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Type of the forward pass; auto is float32 on a CPU, else the weights' own.",
)
@json_option
def calibrate(model: Path, set_path: Path, out: Path, device: str, dtype: str, as_json: bool) -> None:
    """Measure what every expert of MODEL contributes on a calibration set.

    \b
    Examples:
      trimoe calibrate gemma-4-26B-A4B-it --set coding.yaml -o stats.safetensors
      trimoe calibrate MODEL --set SET.yaml -o STATS --device cuda
    """
    require_extra("torch", "calibrate")
    from trimoe.measure.engine import Options
    from trimoe.measure.engine import calibrate as run

    with progress("calibrate") as report:
        stats = run(model, set_path, out, options=Options(device=device, dtype=dtype), progress=report)
    classes, layers, experts = stats.shape
    lines = [f"{out}: {classes} classes, {layers} layers, {experts} experts"]
    for name, tokens in stats.metadata["tokens"].items():
        lines.append(f"  {name:24s} {tokens:9,d} tokens  {stats.metadata['nonfinite'][name]} masked")
    emit({"stats": str(out), "shape": list(stats.shape), **stats.metadata}, "\n".join(lines), as_json)


COMMANDS = [calibrate]
