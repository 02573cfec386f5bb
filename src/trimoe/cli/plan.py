"""`trimoe plan`: sizes to the byte and memory, before anything is made; or what fits into a budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import BadInput, UsageError

if TYPE_CHECKING:
    from trimoe.quantize.plan.plan import Candidate, Memory, Serving
    from trimoe.quantize.types.blueprint import Blueprint
    from trimoe.quantize.types.sizes import Size


@click.command()
@click.argument("model")
@click.option("--keep", type=click.IntRange(1), help="Experts kept in each layer; default: all of them.")
@click.option("--tier", "tier_name", help="A tier, e.g. Q4_K_M, CD-Q4_K_M or NVFP4A16; default: the whole ladder.")
@click.option("--layout", help="Of NVFP4A16: modelopt (default) or compressed-tensors.")
@click.option("--memory", "budget", metavar="SIZE", help="List what fits into this memory, e.g. 16GB or 12GiB.")
@click.option("--context", default="8k", show_default=True, help="Tokens of each conversation, e.g. 32k.")
@click.option("--kv", default="f16", show_default=True, help="Type of the key-value cache, e.g. q8_0.")
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True, help="Conversations at a time.")
@click.option("--vision", is_flag=True, help="Load the vision tower too (an mmproj file).")
@click.option("--table", "as_table", is_flag=True, help="A table of every tier, opt-in ones included.")
@json_option
def plan(
    model: str,
    keep: int | None,
    tier_name: str | None,
    layout: str | None,
    budget: str | None,
    context: str,
    kv: str,
    parallel: int,
    vision: bool,
    as_table: bool,
    as_json: bool,
) -> None:
    """Predict file sizes and memory before quantizing.

    MODEL is a GGUF file (F32, F16 or BF16), a checkpoint directory, a config.json, or the name of a model whose
    configuration is shipped (gemma-4-26B-A4B). From a GGUF file sizes are exact to the byte; from a configuration the
    vocabulary is estimated (`exact` is false), which changes the size by less than 0.1 %. NVFP4A16 is exact from a
    checkpoint directory; from a configuration alone its headers may differ by up to 0.1 MB.

    With --memory it lists the combinations of experts kept and tier that fit, best expected quality first, each pruned
    one beside its rival: the unpruned model at the largest tier that is not larger.

    \b
    Examples:
      trimoe plan gemma-4-26B-A4B --keep 98 --tier Q4_K_M
      trimoe plan gemma-4-26B-A4B --memory 16GB --context 32k --kv q8_0
      trimoe plan model-BF16.gguf --table
      trimoe plan gemma-4-26B-A4B --keep 98 --tier Q4_K_M --vision
      trimoe plan gemma-4-26B-A4B --keep 98 --tier NVFP4A16
    """
    from trimoe.cli.parts.plan_nvfp4 import nvfp4_or_none, text_of, unquantized
    from trimoe.io.sizes import parse_bytes, parse_tokens
    from trimoe.quantize.nvfp4.rules import rules
    from trimoe.quantize.plan.plan import Serving, fitting, size_of
    from trimoe.quantize.plan.plan import memory as memory_of
    from trimoe.quantize.types.tiers import all_tiers, default_ladder, find_tiers
    from trimoe.quantize.types.vision import vision_of

    if tier_name and as_table:
        raise UsageError("--tier and --table contradict each other", expected="one tier, or the table of all")
    if layout and tier_name != rules().tier:
        raise UsageError(f"--layout is for {rules().tier}", expected=f"--tier {rules().tier}")
    if tier_name == rules().tier:
        if budget or vision:
            raise UsageError(
                f"{rules().tier} has no --memory and no --vision",
                expected="neither",
                remedy="the vision tower is in its files; memory is printed anyway",
            )
        data = _nvfp4(model, keep, layout, Serving(parse_tokens(context), parallel, kv.upper()))
        emit(data, text_of(data), as_json)
        return
    blueprint = load_blueprint(model)
    tower = vision_of(model, load_config(model)) if vision else None
    serving = Serving(parse_tokens(context), parallel, kv.upper(), tower.nbytes if tower else 0)
    smaller = blueprint.with_experts(keep) if keep else blueprint
    head = {
        "model": model,
        "experts": blueprint.facts.experts,
        "keep": smaller.facts.experts,
        "exact": blueprint.metadata.exact,
        "context": serving.context,
        "parallel": parallel,
        "kv": serving.kv_type.lower(),
        "safetensors": unquantized(model, smaller.facts.experts, load_config),
        "mmproj": tower and {"file_bytes": tower.file_bytes, "weights": tower.weights, "exact": False},
    }
    if budget is None and tier_name:
        (tier,) = find_tiers([tier_name])
        size = size_of(smaller, tier)
        data = {**head, **_size_json(tier.name, size, memory_of(smaller, size, serving))}
        emit(data, _one_text(data), as_json)
        return
    if budget is None:
        tiers = [t for t in all_tiers().values() if t.broken is None] if as_table else default_ladder()
        sizes = [(t.name, size_of(smaller, t)) for t in tiers]
        rows = [_size_json(name, size, memory_of(smaller, size, serving)) for name, size in sizes]
        head["nvfp4"] = nvfp4_or_none(model, smaller.facts.experts, load_config)
        emit({**head, "tiers": rows}, _table_text(head, rows), as_json)
        return
    wanted = find_tiers([tier_name]) if tier_name else default_ladder()
    limit = parse_bytes(budget)
    every = _candidates(blueprint, wanted, keep, serving)
    fits = fitting(every, limit)
    data = {**head, "memory_bytes": limit, "candidates": len(every), "fits": [_candidate_json(c) for c in fits]}
    emit(data, _fits_text(data, fits, every), as_json)


def _candidates(blueprint: "Blueprint", tiers: Any, keep: int | None, serving: "Serving") -> "list[Candidate]":
    from trimoe.quantize.plan.plan import candidates, default_keeps

    experts = blueprint.facts.experts
    keeps = [keep] if keep else default_keeps(experts, blueprint.top_k)
    found = candidates(blueprint, tiers, keeps, serving)
    return [c for c in found if keep is None or c.keep in (keep, experts)]


def load_blueprint(model: str) -> "Blueprint":
    """The blueprint of a file, directory, config.json or shipped name. Raises `BadInput`."""
    from trimoe.io.publish import read_json
    from trimoe.model.gguf.file import find_gguf, open_gguf
    from trimoe.model.safetensors import read_index
    from trimoe.quantize.types.blueprint import blueprint_of_gguf
    from trimoe.quantize.types.config_blueprint import blueprint_of_config

    path = Path(model)
    if path.exists():
        if (file := find_gguf(path)) is not None:
            return blueprint_of_gguf(open_gguf(file))
        source = path / "config.json" if path.is_dir() else path
        config = read_json(source, "model configuration")
        if not isinstance(config, dict):
            raise BadInput(f"{source} is not a JSON object", expected="a Hugging Face config.json")
        if not path.is_dir():
            return blueprint_of_config(model, config)
        output = any(name.endswith("lm_head.weight") for name in read_index(path))
        return blueprint_of_config(model, config, path / "tokenizer.json", output=output)
    return blueprint_of_config(model, named_config(model))


def named_config(name: str) -> dict[str, Any]:
    """A shipped configuration. Raises `BadInput`."""
    from trimoe.quantize.plan.shipped import shipped_config, shipped_configs

    config = shipped_config(name)
    if config is None:
        raise BadInput(
            f"{name} is neither a path nor a model known by name",
            expected=", ".join(shipped_configs()),
            remedy="give a GGUF file, a checkpoint directory or a config.json",
        )
    return config


def _nvfp4(model: str, keep: int | None, layout: str | None, serving: "Serving") -> dict[str, Any]:
    from trimoe.cli.parts.plan_nvfp4 import nvfp4, with_memory
    from trimoe.errors import CheckpointError
    from trimoe.quantize.nvfp4.rules import LAYOUTS

    data = nvfp4(model, keep, layout or LAYOUTS[0], load_config)
    try:
        blueprint = load_blueprint(model)
    except CheckpointError:  # a family without a GGUF layout: its cache is not known, its size is
        blueprint = None
    return with_memory({"model": model, **data}, blueprint, serving)


def load_config(model: str) -> dict[str, Any]:
    """The configuration of a checkpoint directory, config.json or shipped name. Raises `BadInput`."""
    from trimoe.io.publish import read_json

    path = Path(model)
    if not path.exists():
        return named_config(model)
    source = path / "config.json" if path.is_dir() else path
    if source.suffix != ".json" or not source.exists():
        raise BadInput(
            f"{model} does not say what its vision tower is",
            expected="config.json",
            remedy="give the checkpoint or its config.json; an mmproj file has its own size",
        )
    config = read_json(source, "model configuration")
    assert isinstance(config, dict)
    return config


def _size_json(tier: str, size: "Size", memory: "Memory") -> dict[str, Any]:
    fallbacks = sum(choice.fell_back for choice in size.choices)
    return {
        "tier": tier,
        "file_bytes": size.file_bytes,
        "bits_per_weight": round(size.bits_per_weight, 4),
        "weights": size.values,
        "types": size.type_mix(),
        "fallback_tensors": fallbacks,
        "memory": {
            "weights": memory.weights,
            "kv_cache": memory.kv_cache,
            "compute_estimate": memory.compute,
            "vision": memory.vision,
            "total": memory.total,
        },
    }


def _candidate_json(candidate: "Candidate") -> dict[str, Any]:
    rival = candidate.rival
    return {
        "keep": candidate.keep,
        **_size_json(candidate.tier, candidate.size, candidate.memory),
        "expert_bits": round(candidate.bits, 4),
        "expected_cost": round(candidate.cost, 5),
        "reason": candidate.reason,
        "rival": rival
        and {
            "keep": rival.keep,
            "tier": rival.tier,
            "file_bytes": rival.size.file_bytes,
            "expert_bits": round(rival.bits, 4),
            "expected_cost": round(rival.cost, 5),
        },
    }


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


def _one_text(data: dict[str, Any]) -> str:
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


def _table_text(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{head['model']}, {head['keep']} of {head['experts']} experts"
        f"{'' if head['exact'] else '; vocabulary estimated'}",
        *_checkpoints_text(head),
        "",
        f"{'tier':<12} {'bytes':>16} {'GB':>7} {'bpw':>6} {'in memory':>10}  types (GB)",
    ]
    for row in sorted(rows, key=lambda r: -int(r["file_bytes"])):
        mix = " ".join(f"{kind} {_gb(size)}" for kind, size in list(row["types"].items())[:4])
        lines.append(
            f"{row['tier']:<12} {row['file_bytes']:>16,} {_gb(row['file_bytes']):>7} "
            f"{row['bits_per_weight']:>6.2f} {_gb(row['memory']['total']):>10}  {mix}"
        )
    return "\n".join(lines)


def _fits_text(data: dict[str, Any], fits: "list[Candidate]", every: "list[Candidate]") -> str:
    lines = [
        f"{data['model']} in {_gb(data['memory_bytes'])} GB with {data['parallel']} x {data['context']:,} tokens "
        f"({data['kv']} cache): {len(fits)} of {data['candidates']} combinations fit"
    ]
    if not fits:
        least = min(every, key=lambda c: c.memory.total)
        lines.append(f"the smallest, {least.keep} experts as {least.tier}, needs {_gb(least.memory.total)} GB")
    else:
        lines += [
            "best expected quality first (a rule of thumb, see docs/explanation/sizes.md)",
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


COMMANDS = [plan]
