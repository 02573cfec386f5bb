"""`trimoe quantize`: GGUF tiers, a measured mix, or an NVFP4 checkpoint from one command."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.cli.prune import resumable

if TYPE_CHECKING:
    from trimoe.quantize.dry_run import DryRun
    from trimoe.quantize.ladder.result import BaseFacts, ImatrixFacts, TierFile
    from trimoe.quantize.mix.result import Mix
    from trimoe.quantize.result import Quantized

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=FILE)
@click.option("--tiers", metavar="NAME,...", help="Tiers to make, e.g. Q4_K_M,CD-Q4_K_M.")
@click.option("--ladder", "ladder_file", type=FILE, help="Ladder file (YAML): base, tiers, imatrix, smoke test.")
@click.option("--mix", type=click.Choice(["auto"]), help="Instead of tiers: measure the cost of types and mix them.")
@click.option("--target-size", metavar="SIZE", help="Largest size of the mixed file, e.g. 12.9GB.")
@click.option("--target-bpw", type=click.FloatRange(1, 16), help="Target size as bits per weight of the whole file.")
@click.option("--mix-text", type=FILE, help="Text to measure on; default: the text of --calibration.")
@click.option("--mix-types", metavar="TYPE,...", help="Types to choose from; default: Q8_0 down to IQ2_XS.")
@click.option("--mix-chunks", type=click.IntRange(2), default=32, show_default=True, help="Chunks to measure on.")
@click.option("--mix-context", type=click.IntRange(32), default=512, show_default=True, help="Tokens of a chunk.")
@click.option(
    "-o", "--out", "--output", required=True, type=FILE, help="Directory for the files; the same command resumes."
)
@click.option("--imatrix", type=FILE, help="Importance matrix of this model (GGUF or .dat).")
@click.option("--calibration", type=FILE, metavar="SET", help="Calibration set to make the imatrix from (YAML).")
@click.option(
    "--tokenizer", type=FILE, metavar="DIR", help="For a GGUF model: checkpoint with its tokenizer, to read the set."
)
@click.option("--layer-ranking", type=FILE, help="Layer ranking for CD tiers: JSON, or statistics (.safetensors).")
@click.option("--allow-thin-imatrix", is_flag=True, help="Accept an imatrix with too little data on some experts.")
@click.option("--allow-unchecked", is_flag=True, help="Continue if the base fails the smoke test itself.")
@click.option("--name", help="Stem of the file names; default: the model's name.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=1, show_default=True, help="Tiers made in parallel.")
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads of each program; default: half the cores.")
@click.option("--ram", default="8GB", show_default=True, help="Buffers of all llama-quantize processes together.")
@click.option("--llamacpp", "directory", type=FILE, metavar="DIR", help="Directory with llama.cpp's programs.")
@click.option(
    "--layout", metavar="NAME", help="NVFP4A16: modelopt (default) or compressed-tensors, as the loader requires."
)
@click.option("--max-shard", metavar="SIZE", help="NVFP4A16: size of the largest weights file; default 5GB.")
@click.option(
    "--replies/--no-replies",
    default=None,
    help="NVFP4A16: record greedy replies, with which `serve` compares a server. Default: if torch is installed and "
    "the model has at most 4 GiB as float32.",
)
@click.option("--dry-run", is_flag=True, help="Show the files and their predicted sizes; write nothing.")
@json_option
def quantize(
    model: Path,
    tiers: str | None,
    ladder_file: Path | None,
    mix: str | None,
    target_size: str | None,
    target_bpw: float | None,
    mix_text: Path | None,
    mix_types: str | None,
    mix_chunks: int,
    mix_context: int,
    out: Path,
    imatrix: Path | None,
    calibration: Path | None,
    tokenizer: Path | None,
    layer_ranking: Path | None,
    allow_thin_imatrix: bool,
    allow_unchecked: bool,
    name: str | None,
    jobs: int,
    threads: int | None,
    ram: str,
    directory: Path | None,
    layout: str | None,
    max_shard: str | None,
    replies: bool | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Quantize MODEL to GGUF tiers or to NVFP4A16.

    MODEL is a checkpoint directory or, for GGUF tiers, an unquantized GGUF file.

    A checkpoint is converted to an unquantized base, an imatrix is made once, and llama.cpp makes every tier. Sizes and
    types are predicted before and checked after; each file must stay near its base (smoke test). Finished files
    are reused.

    With --mix auto one file of at most --target-size is made instead of tiers: the KL divergence of each type is
    measured for every layer's attention, FFN and experts, and the types with the least total cost are chosen. This
    runs llama-perplexity once per group and type; measurements are kept beside the files.

    The tier NVFP4A16 (4-bit weights for vLLM and others) is a checkpoint directory: OUT itself, or OUT/NAME-NVFP4A16
    beside other tiers. It needs neither llama.cpp nor torch, streams MODEL, and resumes.

    Exit code 1: the files are made, but one failed its smoke test or could not be checked by it.

    \b
    Examples:
      trimoe quantize MODEL --tiers Q6_K,Q4_K_M -o files --dry-run
      trimoe quantize MODEL --tiers Q6_K,Q4_K_M -o files
      trimoe quantize MODEL --tiers CD-Q4_K_M,IQ3_M -o files --calibration calibration.yaml
      trimoe quantize MODEL --ladder ladder.yaml -o files --imatrix imatrix.gguf --jobs 2
      trimoe quantize MODEL --mix auto --target-size 12.9GB -o files --calibration calibration.yaml
      trimoe quantize MODEL --tiers NVFP4A16 -o MODEL-NVFP4A16
    """
    from trimoe.quantize.nvfp4.rules import rules
    from trimoe.quantize.quantize import quantize as quantize_model

    # Only an NVFP4 checkpoint leaves a directory that a rerun resumes from; GGUF files are published one by one.
    interrupts = (
        resumable(out) if not dry_run and tiers is not None and tiers.strip() == rules().tier else nullcontext()
    )
    with progress("quantize") as report, interrupts:
        made = quantize_model(
            model,
            out=out,
            tiers=tiers,
            ladder=ladder_file,
            mix=None if mix is None else "auto",
            target_size=target_size,
            target_bpw=target_bpw,
            mix_text=mix_text,
            mix_types=mix_types,
            mix_chunks=mix_chunks,
            mix_context=mix_context,
            imatrix=imatrix,
            calibration=calibration,
            tokenizer=tokenizer,
            layer_ranking=layer_ranking,
            allow_thin_imatrix=allow_thin_imatrix,
            allow_unchecked=allow_unchecked,
            name=name,
            jobs=jobs,
            threads=threads,
            ram=ram,
            llamacpp=directory,
            layout=layout,
            max_shard=max_shard,
            replies=replies,
            dry_run=dry_run,
            progress=report,
        )
    emit(made.as_dict(), _text(made), as_json)
    return 1 if made.findings else 0


def _text(made: "Quantized") -> str:
    parts = []
    if made.ladder is not None:
        ladder = made.ladder
        parts.append(_files_text(ladder.model, ladder.base, ladder.imatrix, ladder.files, ladder.findings))
    if made.mix is not None:
        parts.append(_mix_text(made.mix))
    if made.nvfp4 is not None:
        parts.append(_nvfp4_text(made.nvfp4.as_dict()))
    if made.planned is not None:
        parts.append(_planned_text(made.planned))
    return "\n\n".join(parts)


def _planned_text(planned: "DryRun") -> str:
    lines = ["dry run: nothing is written", "", f"{'tier':<12} {'bytes':>15}  file"]
    for one in planned.outputs:
        size = "not known yet" if one.bytes is None else f"{one.bytes:,}"
        lines.append(f"{one.tier:<12} {size:>15}  {one.path}{'  (exists)' if one.exists else ''}")
    if planned.missing is not None:
        lines += ["", f"missing: {planned.missing}"]
    return "\n".join(lines)


def _nvfp4_text(data: dict[str, Any]) -> str:
    lines = [
        f"{data['out']}: {data['tier']}, {data['layout']} layout, {data['file_bytes']:,} bytes of weights, "
        f"{data['bits_per_weight']:.2f} bits per weight{'  (reused)' if data['kept'] else ''}",
        "",
        f"{'matrices':<32} {'count':>7} {'error':>8} {'worst':>8}  worst matrix",
    ]
    for kind, row in data["relative_error"].items():
        lines.append(
            f"{kind:<32} {row['count']:>7,} {row['together']:>8.4f} {row['worst']:>8.4f}  {row['worst_matrix']}"
        )
    share = data["quantized_values"] / data["values"]
    last = f"{data['matrices']:,} matrices with {share:.1%} of the weights are quantized"
    return "\n".join([*lines, f"{last}; trimoe.json lists the relative error of each (norm of the difference / norm)"])


def _files_text(
    model: str,
    base: "BaseFacts",
    imatrix: "ImatrixFacts | None",
    files: "Sequence[TierFile]",
    findings: "Sequence[str]",
) -> str:
    from trimoe.model.gguf.imatrix import note_on

    lines = [
        f"{model}, from {base.file}" + (f", imatrix {imatrix.sha256[:16]}" if imatrix else ", no imatrix"),
        "",
        f"{'tier':<12} {'bytes':>15} {'bpw':>6} {'imatrix':<8} {'smoke':<9} {'KL':>8} {'sha256':<13} MB",
    ]
    for file in files:
        mix = " ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sorted(file.types.items(), key=_by_size)[:4])
        lines.append(
            f"{file.tier:<12} {file.file_bytes:>15,} {file.bits_per_weight:>6.2f} "
            f"{'yes' if file.imatrix else 'no':<8} {_verdict(file):<9} {_kl(file):>8} {file.sha256[:12]} {mix}"
            f"{'  (reused)' if file.reused else ''}"
        )
        if (done := file.map) and (done.fell_back or done.kept):
            lines.append(
                f"{'':<12} tensor-type map: {done.fell_back} tensors fell back (row length), "
                f"{done.kept} lines name tensors that llama.cpp does not change, {done.unmatched} match nothing"
            )
    if imatrix is not None and imatrix.unknown:
        lines.append(f"{note_on(imatrix.unknown)}; llama-quantize ignores them")
    return "\n".join([*lines, *(f"finding: {text}" for text in findings)])


def _verdict(file: "TierFile") -> str:
    if file.smoke is None:
        return "-"
    return "FAILED" if file.smoke.failed else "unchecked" if file.smoke.unchecked else "ok"


def _kl(file: "TierFile") -> str:
    return "-" if file.smoke is None else f"{file.smoke.departure.kl:.4f}"


def _mix_text(mix: "Mix") -> str:
    forecast = mix.forecast
    low, high = forecast.predicted_kld_interval
    lines = [f"{'group':<20} {'type':<8} {'stored as':<16} {'MB':>10} {'KLD':>9}"]
    lines += [
        f"{name:<20} {one.type:<8} {'+'.join(one.stored):<16} {one.bytes / 1e6:>10.2f} {one.kld:>9.6f}"
        for name, one in forecast.groups.items()
    ]
    proof = "proven least total cost" if forecast.gap == 0 else f"at most {forecast.gap:.6f} above the least total cost"
    return "\n".join(
        [
            *lines,
            "",
            f"{forecast.file_bytes:,} bytes of {forecast.target_bytes:,} allowed; {proof}",
            f"KL divergence on the measuring text: predicted {forecast.predicted_kld:.5f} [{low:.5f}, {high:.5f}], "
            f"measured {mix.measured_kld:.5f}",
            "",
            _files_text(mix.model, mix.base, mix.imatrix, [mix.file], mix.findings),
        ]
    )


def _by_size(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


COMMANDS = [quantize]
