"""`trimoe heal`: parse, call, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option, progress, require_extra

if TYPE_CHECKING:
    from trimoe.heal.heal import HealReport

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("base", type=PATH)
@click.argument("pruned", type=PATH)
@click.option("-o", "--out", "--output", required=True, type=PATH, help="Directory to create.")
@click.option(
    "--method",
    required=True,
    type=click.Choice(["shared-alpha", "expert-scale", "router"]),
    help="Scale the shared FFN, scale the experts, or refit the routers.",
)
@click.option(
    "--alpha",
    default="1.2",
    show_default=True,
    metavar="A|FIRST:LAST:STEP",
    help="Factor. Of a range, the factor with the lowest divergence on the calibration part is used.",
)
@click.option(
    "--on",
    type=click.Choice(["down", "gain"]),
    default="down",
    show_default=True,
    help="shared-alpha: scale the last matrix, or the gain of the norm behind it.",
)
@click.option("--set", "set_file", type=PATH, help="Calibration set; a third of its documents is held out.")
@click.option("--held-out", type=PATH, help="Measure on this set instead; the two sets must share no document.")
@click.option("--passes", type=click.IntRange(1), default=12, show_default=True, help="router: steps per layer.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.01,
    show_default=True,
    help="router: size of a step, relative to the router's values.",
)
@click.option("--keep-worse", is_flag=True, help="Write the result even if it is worse, marked as not publishable.")
@click.option(
    "--unmeasured", is_flag=True, help="Write without measuring (quantized models), marked as not publishable."
)
@click.option("--dry-run", is_flag=True, help="Check everything and report what would change; write nothing.")
@click.option("--device", default="cpu", show_default=True, help="Device that runs the layers: cpu, cuda, cuda:1, ...")
@json_option
def heal(
    base: Path,
    pruned: Path,
    out: Path,
    method: str,
    alpha: str,
    on: str,
    set_file: Path | None,
    held_out: Path | None,
    passes: int,
    rate: float,
    keep_worse: bool,
    unmeasured: bool,
    dry_run: bool,
    device: str,
    as_json: bool,
) -> None:
    """Adjust PRUNED beyond expert removal to recover quality.

    PRUNED is a prune of BASE. The KL divergence from BASE is measured before and after on held-out text. If it rises,
    nothing is written (exit 5). OUT/trimoe.json names every changed tensor. `certify` never proves a healed model.

    \b
    Examples:
      trimoe heal MODEL PRUNED -o HEALED --method router --set set.yaml
      trimoe heal MODEL PRUNED -o HEALED --method shared-alpha --alpha 1.0:1.3:0.05 --set set.yaml
      trimoe heal MODEL PRUNED -o HEALED --method expert-scale --alpha 1.2 --set set.yaml --held-out other.yaml
      trimoe heal MODEL-NVFP4 PRUNED-NVFP4 -o HEALED --method shared-alpha --alpha 1.2 --unmeasured
    """
    from trimoe.heal.heal import heal as run
    from trimoe.heal.heal import parse_factors

    if not unmeasured:
        require_extra("torch", "measuring a heal")
    with progress("heal") as update:
        report = run(
            base,
            pruned,
            out,
            method=method,
            alpha=parse_factors(alpha),
            on=on,
            calibration_set=set_file,
            held_out=held_out,
            passes=passes,
            rate=rate,
            unmeasured=unmeasured,
            keep_worse=keep_worse,
            dry_run=dry_run,
            device=device,
            progress=update,
        )
    emit(report.as_dict(), _dry_run_text(report) if dry_run else _text(out, report.record), as_json)


def _dry_run_text(report: "HealReport") -> str:
    return (
        f"{report.method}: would change {len(report.tensors)} tensors: {', '.join(report.tensors)}\n"
        f"text: {report.fit_windows} windows to fit on, {report.held_out_windows} held out"
    )


def _text(out: Path, record: dict[str, Any]) -> str:
    lines = []
    for row in record.get("sweep", []):
        lines.append(f"  factor {row['alpha']:<6g} KL {row['kl']:.5f} [{row['low']:.5f}, {row['high']:.5f}]")
    tried = [row["alpha"] for row in record.get("sweep", [])]
    if tried and record["settings"]["alpha"] in (tried[0], tried[-1]):
        lines.append("  the best factor is at the end of the range: try a wider range")
    for row in record.get("layers", []):
        lines.append(
            f"  layer {row['layer']}: error {row['error_before']:.5f} -> {row['error_after']:.5f}, "
            f"rows moved by {row['change']:.2%}"
        )
    measured = record["measured"]
    if measured is not None:
        low, high = measured["kl_change_interval"]
        lines.append(
            f"KL to the unpruned model, {measured['tokens']} held-out tokens: {measured['kl_before']:.5f} -> "
            f"{measured['kl_after']:.5f} nats per token, change {measured['kl_change']:+.5f} "
            f"[{low:+.5f}, {high:+.5f}]"
        )
        lines += [
            f"  {name}: loss {c['loss_unpruned']:.4f} unpruned, {c['loss_before']:.4f} -> {c['loss_after']:.4f}"
            for name, c in measured["classes"].items()
        ]
        if not measured["gain_shown"]:
            lines.append("the interval includes 0: no gain is shown")
    lines.append(f"{out}: {len(record['tensors'])} tensors changed by {record['method']}")
    lines += [f"NOT publishable: {reason}" for reason in record["reasons"]]
    return "\n".join(lines)


COMMANDS = [heal]
