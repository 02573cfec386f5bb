"""`trimoe quantize`: a ladder of GGUF files or an NVFP4 checkpoint from one command, resumable, all checked."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option, parse_size, progress
from trimoe.errors import UsageError

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=FILE)
@click.option("--tiers", metavar="NAME,...", help="Tiers to make, e.g. Q4_K_M,CD-Q4_K_M.")
@click.option("--ladder", "ladder_file", type=FILE, help="Ladder file (YAML): base, tiers, imatrix, smoke test.")
@click.option("--mix", type=click.Choice(["auto"]), help="Instead of tiers: measure what types cost, and mix them.")
@click.option("--target-size", metavar="SIZE", help="Largest file that the mix may become, e.g. 12.9GB.")
@click.option("--target-bpw", type=click.FloatRange(1, 16), help="The same as bits per weight of the whole file.")
@click.option("--mix-text", type=FILE, help="Text to measure on; default: the text of --calibration.")
@click.option("--mix-types", metavar="TYPE,...", help="Types to choose from; default: Q8_0 down to IQ2_XS.")
@click.option("--mix-chunks", type=click.IntRange(2), default=32, show_default=True, help="Chunks to measure on.")
@click.option("--mix-context", type=click.IntRange(32), default=512, show_default=True, help="Tokens of a chunk.")
@click.option("-o", "--out", required=True, type=FILE, help="Directory for the files; the same command resumes.")
@click.option("--imatrix", type=FILE, help="Importance matrix of this model (GGUF or .dat).")
@click.option("--calibration", type=FILE, metavar="SET", help="Calibration set to make the imatrix from (YAML).")
@click.option(
    "--tokenizer", type=FILE, metavar="DIR", help="Checkpoint whose tokenizer reads the set, for a GGUF model."
)
@click.option("--layer-ranking", type=FILE, help="Ranks layers for CD tiers: JSON, or statistics (.safetensors).")
@click.option("--allow-thin-imatrix", is_flag=True, help="Go on where the imatrix saw too little of some experts.")
@click.option("--allow-unchecked", is_flag=True, help="Go on where the base fails its own smoke test.")
@click.option("--name", help="What files are called after; default: the model's name.")
@click.option("--jobs", "-j", type=click.IntRange(1), default=1, show_default=True, help="Tiers at a time.")
@click.option("--threads", "-t", type=click.IntRange(1), help="Threads of each program; default: half the cores.")
@click.option("--ram", default="8GB", show_default=True, help="Buffers of all llama-quantize together.")
@click.option("--llamacpp", "directory", type=FILE, metavar="DIR", help="A directory with llama.cpp's programs.")
@click.option(
    "--layout", metavar="NAME", help="NVFP4A16: modelopt (default) or compressed-tensors, as the loader wants it."
)
@click.option("--max-shard", metavar="SIZE", help="NVFP4A16: largest weights file; default 5GB.")
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
    as_json: bool,
) -> int:
    """Quantize MODEL to GGUF tiers or to NVFP4A16.

    MODEL is a checkpoint directory or, for GGUF tiers, an unquantized GGUF file.

    Converts to a base, measures an imatrix once, and makes every tier of the ladder through llama.cpp. Sizes and types
    are predicted before and checked after; each file must load and end its answers. Finished files are kept.

    With --mix auto no tier is made but one file of at most --target-size: for every layer's attention, FFN and experts
    the KL divergence of each type is measured, and the types that cost least in sum are chosen. It takes a run of
    llama-perplexity per group and type; measurements are kept beside the files.

    The tier NVFP4A16 (4-bit weights for vLLM and others) is a checkpoint directory: OUT itself, or OUT/NAME-NVFP4A16
    beside other tiers. It needs neither llama.cpp nor torch, reads MODEL in pieces, and resumes.

    Exit code 1: the files are made, but one failed its smoke test or could not be checked by it.

    \b
    Examples:
      trimoe quantize MODEL --tiers Q6_K,Q4_K_M -o files
      trimoe quantize MODEL --tiers CD-Q4_K_M,IQ3_M -o files --calibration calibration.yaml
      trimoe quantize MODEL --ladder ladder.yaml -o files --imatrix imatrix.gguf --jobs 2
      trimoe quantize MODEL --mix auto --target-size 12.9GB -o files --calibration calibration.yaml
      trimoe quantize MODEL --tiers NVFP4A16 -o MODEL-NVFP4A16
    """
    from trimoe.llamacpp.tools import locate
    from trimoe.model.checkpoint import open_checkpoint
    from trimoe.quantize.ladder.file import load_ladder
    from trimoe.quantize.ladder.ladder import make_ladder
    from trimoe.quantize.ladder.sources import Effort, Sources
    from trimoe.quantize.nvfp4.plan import plan_nvfp4
    from trimoe.quantize.nvfp4.rules import LAYOUTS, rules
    from trimoe.quantize.plan.plan import parse_bytes

    targets = (target_size, target_bpw, mix_text, mix_types)
    if mix is None and any(value is not None for value in targets):
        raise UsageError("--target-size, --target-bpw, --mix-text and --mix-types belong to --mix auto")
    if mix is not None and tiers is not None:
        raise UsageError(
            "--mix and --tiers contradict each other",
            expected="one of them",
            remedy="run the command twice with the same -o: base and imatrix are shared",
        )
    if mix is None and tiers is None and ladder_file is None:
        raise UsageError("nothing to make", expected="--tiers NAME,..., --ladder FILE or --mix auto")
    names = [] if tiers is None else [name.strip() for name in tiers.split(",")]
    nvfp4 = rules().tier in names
    if not nvfp4 and (layout is not None or max_shard is not None):
        raise UsageError(f"--layout and --max-shard are for {rules().tier}", expected=f"--tiers {rules().tier}")
    if names == [rules().tier]:
        made = _nvfp4(model, out, layout, max_shard, threads)
        emit(made, _nvfp4_text(made), as_json)
        return 0
    if nvfp4:  # refused before the others are made; made after them
        names.remove(rules().tier)
        plan_nvfp4(open_checkpoint(model), layout or LAYOUTS[0])
    ladder = load_ladder(ladder_file)
    if names:
        ladder = ladder.model_copy(update={"tiers": tuple(names)})
    if allow_unchecked and ladder.smoke is not None:
        ladder = ladder.model_copy(update={"smoke": ladder.smoke.model_copy(update={"allow_unchecked": True})})
    effort = Effort(jobs, threads or Effort().threads, parse_bytes(ram))
    sources = Sources(imatrix, calibration, tokenizer, layer_ranking, allow_thin_imatrix)
    if mix is not None:
        from trimoe.quantize.mix.mix import Wish, make_mix
        from trimoe.quantize.mix.options import TYPES

        chosen = tuple(t.strip().upper() for t in mix_types.split(",")) if mix_types else TYPES
        wish = Wish(
            parse_bytes(target_size) if target_size else None, target_bpw, mix_text, chosen, mix_chunks, mix_context
        )
        with progress("mix") as report:
            data = make_mix(
                model, out, wish, ladder, locate(directory), sources=sources, effort=effort, name=name, progress=report
            )
        emit(data, _mix_text(data), as_json)
        return 1 if data["findings"] else 0
    with progress("quantize") as report:
        data = make_ladder(
            model, out, ladder, locate(directory), sources=sources, effort=effort, name=name, progress=report
        )
    text = _text(data)
    if nvfp4:
        folder = out / f"{name or model.absolute().name}-{rules().tier}"
        data["nvfp4"] = _nvfp4(model, folder, layout, max_shard, threads)
        text += f"\n\n{_nvfp4_text(data['nvfp4'])}"
    emit(data, text, as_json)
    return 1 if data["findings"] else 0


def _nvfp4(model: Path, out: Path, layout: str | None, max_shard: str | None, threads: int | None) -> dict[str, Any]:
    from trimoe.cli.prune import resumable
    from trimoe.cut.plan import DEFAULT_SHARD
    from trimoe.quantize.nvfp4.quantize import quantize_nvfp4
    from trimoe.quantize.nvfp4.rules import rules

    limit = DEFAULT_SHARD if max_shard is None else parse_size(max_shard, "--max-shard 5GB")
    chosen = layout or "modelopt"
    with progress(rules().tier) as report, resumable(out):
        result = quantize_nvfp4(model, out, layout=chosen, max_shard=limit, threads=threads, progress=report)
    return {
        "tier": rules().tier,
        "layout": chosen,
        "out": str(out),
        "kept": result.kept,
        **result.facts,
        "relative_error_by_matrix": result.errors,
    }


def _nvfp4_text(data: dict[str, Any]) -> str:
    lines = [
        f"{data['out']}: {data['tier']}, {data['layout']} layout, {data['file_bytes']:,} bytes of weights, "
        f"{data['bits_per_weight']:.2f} bits per weight{'  (kept)' if data['kept'] else ''}",
        "",
        f"{'matrices':<32} {'count':>7} {'error':>8} {'worst':>8}  worst matrix",
    ]
    for kind, row in data["relative_error"].items():
        lines.append(
            f"{kind:<32} {row['count']:>7,} {row['together']:>8.4f} {row['worst']:>8.4f}  {row['worst_matrix']}"
        )
    share = data["quantized_values"] / data["values"]
    last = f"{data['matrices']:,} matrices with {share:.1%} of the weights are quantized"
    return "\n".join([*lines, f"{last}; the errors of each (norm of the difference / norm) stand in trimoe.json"])


def _text(data: dict[str, Any]) -> str:
    imatrix = data["imatrix"]
    lines = [
        f"{data['model']}, from {data['base']['file']}"
        + (f", imatrix {imatrix['sha256'][:16]}" if imatrix else ", no imatrix"),
        "",
        f"{'tier':<12} {'bytes':>15} {'bpw':>6} {'imatrix':<8} {'smoke':<9} {'sha256':<13} MB",
    ]
    for row in data["files"]:
        smoke = row.get("smoke")
        mix = " ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sorted(row["types"].items(), key=_by_size)[:4])
        lines.append(
            f"{row['tier']:<12} {row['file_bytes']:>15,} {row['bits_per_weight']:>6.2f} "
            f"{'yes' if row['imatrix'] else 'no':<8} "
            f"{_verdict(smoke):<9} {row['sha256'][:12]} {mix}"
            f"{'  (kept)' if row['kept'] else ''}"
        )
        if (done := row.get("map")) and (done["fell back"] or done["kept by llama.cpp"]):
            lines.append(
                f"{'':<12} of its map {done['fell back']} tensors fell back (row length), "
                f"{done['kept by llama.cpp']} lines name tensors that llama.cpp keeps, "
                f"{done['no such tensor']} match nothing"
            )
    return "\n".join([*lines, *(f"finding: {text}" for text in data["findings"])])


def _verdict(smoke: dict[str, Any] | None) -> str:
    if smoke is None:
        return "-"
    return "FAILED" if smoke["failed"] else "unchecked" if smoke["unchecked"] else "ok"


def _mix_text(data: dict[str, Any]) -> str:
    low, high = data["predicted_kld_interval"]
    lines = [f"{'group':<20} {'type':<8} {'stored as':<16} {'MB':>10} {'KLD':>9}"]
    for name, one in data["groups"].items():
        lines.append(
            f"{name:<20} {one['type']:<8} {'+'.join(one['stored']):<16} {one['bytes'] / 1e6:>10.2f} {one['kld']:>9.6f}"
        )
    proof = "proven least in sum" if data["gap"] == 0 else f"at most {data['gap']:.6f} above the least sum"
    return "\n".join(
        [
            *lines,
            "",
            f"{data['file_bytes']:,} bytes of {data['target_bytes']:,} allowed; {proof}",
            f"KL divergence on the measuring text: predicted {data['predicted_kld']:.5f} [{low:.5f}, {high:.5f}], "
            f"measured {data['measured_kld']:.5f}",
            "",
            _text(data),
        ]
    )


def _by_size(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


COMMANDS = [quantize]
