"""`trimoe plan`: file sizes and memory before quantizing, or what fits into a memory budget."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option

if TYPE_CHECKING:
    from trimoe.quantize.plan.candidates import Candidate
    from trimoe.quantize.plan.result import BudgetPlan, SizePlan


@click.command()
@click.argument("model")
@click.option("--keep", type=click.IntRange(1), help="Experts kept in each layer; default: all of them.")
@click.option("--tier", help="A tier, e.g. Q4_K_M, CD-Q4_K_M or NVFP4A16; default: the whole ladder.")
@click.option("--layout", help="For NVFP4A16: modelopt (default) or compressed-tensors.")
@click.option("--memory", metavar="SIZE", help="List what fits into this memory, e.g. 16GB or 12GiB.")
@click.option("--context", default="8k", show_default=True, help="Tokens per conversation, e.g. 32k.")
@click.option("--kv", default="f16", show_default=True, help="Type of the key-value cache, e.g. q8_0.")
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True, help="Parallel conversations.")
@click.option("--vision", is_flag=True, help="Include the vision tower (an mmproj file).")
@click.option("--table", is_flag=True, help="List every tier, opt-in ones included.")
@json_option
def plan(
    model: str,
    keep: int | None,
    tier: str | None,
    layout: str | None,
    memory: str | None,
    context: str,
    kv: str,
    parallel: int,
    vision: bool,
    table: bool,
    as_json: bool,
) -> None:
    """Predict file sizes and memory before quantizing.

    MODEL is a GGUF file (F32, F16 or BF16), a checkpoint directory, a config.json, or the name of a model whose
    configuration is shipped (gemma-4-26B-A4B). From a GGUF file sizes are exact to the byte; from a configuration the
    vocabulary is estimated (`exact` is false), which changes the size by less than 0.1 %. NVFP4A16 is exact from a
    checkpoint directory; from a configuration alone its headers may differ by up to 0.1 MB.

    With --memory the plan lists the combinations of experts kept and tier that fit, best expected quality first. Each
    pruned one is shown with its rival: the unpruned model at the largest tier that is not larger.

    \b
    Examples:
      trimoe plan gemma-4-26B-A4B --keep 98 --tier Q4_K_M
      trimoe plan gemma-4-26B-A4B --memory 16GB --context 32k --kv q8_0
      trimoe plan model-BF16.gguf --table
      trimoe plan gemma-4-26B-A4B --keep 98 --tier Q4_K_M --vision
      trimoe plan gemma-4-26B-A4B --keep 98 --tier NVFP4A16
    """
    from trimoe.quantize.plan.predict import plan as predict

    made = predict(
        model,
        keep=keep,
        tier=tier,
        layout=layout,
        memory=memory,
        context=context,
        kv=kv,
        parallel=parallel,
        vision=vision,
        table=table,
    )
    emit(made.as_dict(), _text(made), as_json)


def _text(made: "SizePlan") -> str:
    from trimoe.quantize.plan.result import BudgetPlan, LadderPlan, Nvfp4Plan

    data = made.as_dict()
    if isinstance(made, Nvfp4Plan):
        return _nvfp4_text(data)
    if isinstance(made, BudgetPlan):
        return _fits_text(data, made)
    return _table_text(data) if isinstance(made, LadderPlan) else _tier_text(data)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


def _tier_text(data: dict[str, Any]) -> str:
    memory, mix = data["memory"], ", ".join(f"{kind} {_gb(size)}" for kind, size in data["types"].items())
    return "\n".join(
        [
            f"{data['model']}, {data['keep']} of {data['experts']} experts, {data['tier']}",
            f"  file     {data['file_bytes']:>15,} bytes{'' if data['exact'] else ' (vocabulary estimated)'}, "
            f"{data['bits_per_weight']:.2f} bits per weight",
            f"  types    {mix} GB"
            + (
                f"; {data['fallback_tensors']} tensors fell back because of their row length"
                if data["fallback_tensors"]
                else ""
            ),
            f"  memory   {memory['total']:>15,} bytes: weights {_gb(memory['weights'])}, "
            f"cache {_gb(memory['kv_cache'])} "
            f"({data['parallel']} x {data['context']:,} tokens, {data['kv']}), compute about "
            f"{_gb(memory['compute_estimate'])} GB" + (f", vision {_gb(memory['vision'])}" if memory["vision"] else ""),
            *(
                [f"  mmproj   {data['mmproj']['file_bytes']:>15,} bytes (header estimated), a file of its own"]
                if data["mmproj"]
                else []
            ),
        ]
    )


def _checkpoints_text(head: dict[str, Any]) -> list[str]:
    lines = []
    for key, title in (("safetensors", "safetensors, not quantized"), ("nvfp4", "NVFP4A16, for vLLM and others")):
        if (found := head[key]) is not None:
            note = "" if found["exact"] else " (headers within 0.1 MB)"
            lines.append(f"{title}: {found['file_bytes']:,} bytes{note}")
    return lines


def _table_text(head: dict[str, Any]) -> str:
    lines = [
        f"{head['model']}, {head['keep']} of {head['experts']} experts"
        f"{'' if head['exact'] else '; vocabulary estimated'}",
        *_checkpoints_text(head),
        "",
        f"{'tier':<12} {'bytes':>16} {'GB':>7} {'bpw':>6} {'in memory':>10}  types (GB)",
    ]
    for row in sorted(head["tiers"], key=lambda r: -int(r["file_bytes"])):
        mix = " ".join(f"{kind} {_gb(size)}" for kind, size in list(row["types"].items())[:4])
        lines.append(
            f"{row['tier']:<12} {row['file_bytes']:>16,} {_gb(row['file_bytes']):>7} "
            f"{row['bits_per_weight']:>6.2f} {_gb(row['memory']['total']):>10}  {mix}"
        )
    return "\n".join(lines)


def _fits_text(data: dict[str, Any], made: "BudgetPlan") -> str:
    fits = made.fits
    lines = [
        f"{data['model']} in {_gb(data['memory_bytes'])} GB with {data['parallel']} x {data['context']:,} tokens "
        f"({data['kv']} cache): {len(fits)} of {data['candidates']} combinations fit"
    ]
    if not fits:
        least = min(made.candidates, key=lambda c: c.memory.total)
        lines.append(f"the smallest, {least.keep} experts as {least.tier}, needs {_gb(least.memory.total)} GB")
    else:
        lines += [
            "best expected quality first. cost: 10 x 4^-(bits per expert weight) + (share of experts dropped)^2,",
            "in the order of nats of KL divergence; a rule of thumb for ranking (docs/explanation/sizes.md).",
            "Measure what you take: `trimoe kld`, `trimoe eval`.",
            *_unpruned_first(fits, int(data["experts"])),
            "",
            f"{'experts':>7} {'tier':<12} {'file GB':>8} {'memory':>7} {'cost':>6}  why",
        ]
    for one in fits[:20]:
        lines.append(
            f"{one.keep:>7} {one.tier:<12} {_gb(one.size.file_bytes):>8} {_gb(one.memory.total):>7} "
            f"{one.cost:>6.3f}  {one.reason}"
        )
    if len(fits) > 20:
        lines.append(f"... and {len(fits) - 20} more (--json lists all)")
    return "\n".join(lines)


def _unpruned_first(fits: Sequence["Candidate"], experts: int) -> list[str]:
    """A line that says that the best candidates keep all experts, if they do."""
    whole = next((i for i, one in enumerate(fits) if one.keep < experts), len(fits))
    if whole == 0:
        return []
    best = "every one keeps" if whole == len(fits) else "the best keeps" if whole == 1 else f"the best {whole} keep"
    return [f"{best} all {experts} experts: a pruned model of this size is expected to be worse"]


def _nvfp4_text(data: dict[str, Any]) -> str:
    share = data["quantized_weights"] / data["weights"]
    lines = [
        f"{data['model']}, {data['keep']} of {data['experts']} experts, {data['tier']} ({data['layout']} layout)",
        f"  files    {data['file_bytes']:>15,} bytes in {data['files']}"
        + ("" if data["exact"] else " (16 bits assumed for the rest, headers within 0.1 MB)")
        + f", {data['bits_per_weight']:.2f} bits per weight",
        f"  weights  {data['weights']:>15,}, {share:.1%} of them quantized",
    ]
    if (memory := data["memory"])["total"] is not None:
        lines.append(
            f"  memory   {memory['total']:>15,} bytes: weights {memory['weights'] / 1e9:.2f}, cache "
            f"{memory['kv_cache'] / 1e9:.2f} GB ({data['parallel']} x {data['context']:,} tokens, "
            f"{data['kv']}), without the server's buffers"
        )
    return "\n".join(lines)


COMMANDS = [plan]
