"""`trimoe inspect`: what a checkpoint is, from its headers."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import UsageError


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--finite", is_flag=True, help="Also read every weight and refuse NaN or infinity.")
@json_option
def inspect(model: Path, finite: bool, as_json: bool) -> None:
    """Show a model's family, layers, experts, layout and sizes.

    MODEL is a checkpoint directory or a GGUF file.

    Reads headers only, unless --finite is given.

    \b
    Examples:
      trimoe inspect gemma-4-26B-A4B-it
      trimoe inspect gemma-4-26B-A4B-it --json
      trimoe inspect gemma-4-26B-A4B-it-Q4_K_M.gguf
    """
    from trimoe.model.checkpoint import open_checkpoint
    from trimoe.model.finite import check_finite
    from trimoe.model.gguf.file import find_gguf
    from trimoe.model.gguf.model import open_gguf_model

    if (gguf := find_gguf(model)) is not None:
        if finite:
            raise UsageError(
                "--finite reads unquantized weights only",
                actual=f"{gguf} is a GGUF file",
                remedy="llama.cpp checks a GGUF file when it loads it with --check-tensors",
            )
        facts = describe_gguf(open_gguf_model(gguf))
        emit(facts, gguf_text(facts), as_json)
        return
    checkpoint = open_checkpoint(model)
    if finite:
        check_finite(checkpoint)
    data = describe(checkpoint)
    data["finite"] = True if finite else None
    data["warnings"] = checkpoint.warnings
    rows = [
        ("family", f"{data['family']} ({', '.join(data['dtypes'])})"),
        ("layers", f"{data['layers']} ({data['moe_layers']} with experts)"),
        ("experts", f"{data['experts']} per layer, {data['top_k']} active per token"),
        ("layout", f"{data['layout']}, prefix {data['prefix']}"),
        ("cut along experts", ", ".join(data["roles"]) if data["cannot_cut"] is None else f"no: {data['cannot_cut']}"),
        ("size", f"{data['bytes']:,} bytes in {data['tensors']} tensors, {data['shards']} files"),
        (
            "experts' share",
            f"{data['expert_bytes']:,} bytes, {100 * data['expert_bytes'] / max(1, data['bytes']):.1f} %",
        ),
        ("one expert", f"{data['bytes_per_expert']:,} bytes in each layer"),
        ("fingerprint", str(data["fingerprint"])),
    ]
    if data["draft_blocks"]:
        rows.insert(4, ("drafting blocks", f"{', '.join(data['draft_blocks'])} (cut like the last layer with experts)"))
    rows += [("values", "all finite")] if finite else []
    rows += [("warning", warning) for warning in data["warnings"]]
    width = max(len(label) for label, _ in rows) + 2
    emit(data, "\n".join(f"{label:<{width}}{value}" for label, value in rows), as_json)


def describe(checkpoint: Any) -> dict[str, Any]:
    """The facts of a `Checkpoint` as JSON values; sizes in bytes."""
    expert_bytes = sum(tensor.info.nbytes for tensor in checkpoint.expert_tensors.values())
    first = checkpoint.moe_layers[0]
    in_first = [t.info.nbytes for name, t in checkpoint.expert_tensors.items() if checkpoint.layer_of(name) == first]
    per_expert = any(role.per_expert for role in checkpoint.hf.roles.values())
    return {
        "path": str(checkpoint.path),
        "family": checkpoint.family.name,
        "layout": "one tensor per expert" if per_expert else "stacked experts",
        "prefix": checkpoint.prefix,
        "roles": sorted({tensor.role for tensor in checkpoint.expert_tensors.values()}),
        "draft_blocks": [prefix.rstrip(".") for prefix in checkpoint.draft_blocks],
        "cannot_cut": checkpoint.cannot_cut,
        "layers": checkpoint.num_layers,
        "moe_layers": len(checkpoint.moe_layers),
        "experts": checkpoint.num_experts,
        "top_k": checkpoint.top_k,
        "dtypes": sorted({info.dtype for info in checkpoint.index.values()}),
        "tensors": len(checkpoint.index),
        "shards": len({info.file for info in checkpoint.index.values()}),
        "bytes": checkpoint.nbytes,
        "expert_bytes": expert_bytes,
        "bytes_per_expert": sum(in_first) // checkpoint.num_experts,
        "fingerprint": checkpoint.fingerprint,
    }


def describe_gguf(model: Any) -> dict[str, Any]:
    """The facts of a `GgufModel` as JSON values, under the same names; sizes in bytes."""
    experts = [tensor.info for tensor in model.expert_tensors.values()]
    expert_bytes = sum(info.nbytes for info in experts)
    sizes: dict[str, int] = {}
    for info in model.index.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return {
        "path": str(model.path),
        "family": model.architecture,
        "layout": "GGUF",
        "name": model.gguf.get("general.name"),
        "layers": model.num_layers,
        "moe_layers": len(model.moe_layers),
        "experts": model.num_experts,
        "top_k": model.top_k,
        "dtypes": dict(sorted(sizes.items(), key=lambda pair: -pair[1])),
        "tensors": len(model.index),
        "shards": len(model.gguf.files),
        "bytes": model.nbytes,
        "file_bytes": sum(file.size for file in model.gguf.files),
        "expert_bytes": expert_bytes,
        "expert_dtypes": sorted({info.dtype for info in experts if len(info.shape) == 3}),
        "bytes_per_expert": expert_bytes // (len(model.moe_layers) * model.num_experts),
        "fingerprint": model.fingerprint,
    }


def gguf_text(data: dict[str, Any]) -> str:
    """The facts of a GGUF model for people."""
    types = [f"{name} {100 * size / max(1, data['bytes']):.1f} %" for name, size in data["dtypes"].items()]
    share = 100 * data["expert_bytes"] / max(1, data["bytes"])
    active = f"{data['experts']} per layer, {data['top_k']} active per token"
    rows = [
        ("family", f"{data['family']}, GGUF" + (f" ({data['name']})" if data["name"] else "")),
        ("layers", f"{data['layers']} ({data['moe_layers']} with experts)"),
        ("experts", f"{active}, in {', '.join(data['expert_dtypes'])}"),
        (
            "size",
            f"{data['file_bytes']:,} bytes, {data['tensors']} tensors in {data['shards']} "
            f"file{'s' if data['shards'] > 1 else ''}",
        ),
        ("types", ", ".join(types)),
        ("experts' share", f"{data['expert_bytes']:,} bytes, {share:.1f} %"),
        ("one expert", f"{data['bytes_per_expert']:,} bytes in each layer, on average"),
        ("fingerprint", str(data["fingerprint"])),
    ]
    return "\n".join(f"{label:<16}{value}" for label, value in rows)


COMMANDS = [inspect]
