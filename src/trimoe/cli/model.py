"""`trimoe inspect`: what a checkpoint is, from its headers."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.common import emit, json_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--finite", is_flag=True, help="Also read every weight and refuse NaN or infinity.")
@json_option
def inspect(model: Path, finite: bool, as_json: bool) -> None:
    """Show family, layers, experts, layout and sizes of the checkpoint MODEL.

    Reads headers only, unless --finite is given.

    \b
    Examples:
      trimoe inspect gemma-4-26B-A4B-it
      trimoe inspect gemma-4-26B-A4B-it --json
    """
    from trimoe.model.checkpoint import check_finite, open_checkpoint

    checkpoint = open_checkpoint(model)
    if finite:
        check_finite(checkpoint)
    data = describe(checkpoint)
    data["finite"] = True if finite else None
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
    width = max(len(label) for label, _ in rows) + 2
    emit(data, "\n".join(f"{label:<{width}}{value}" for label, value in rows), as_json)


def describe(checkpoint: Any) -> dict[str, Any]:
    """The facts of a `Checkpoint` as JSON values; sizes in bytes."""
    expert_bytes = sum(tensor.info.nbytes for tensor in checkpoint.expert_tensors.values())
    first = checkpoint.moe_layers[0]
    in_first = [t.info.nbytes for name, t in checkpoint.expert_tensors.items() if checkpoint.layer_of(name) == first]
    per_expert = any(role.per_expert for role in checkpoint.arch.roles.values())
    return {
        "path": str(checkpoint.path),
        "family": checkpoint.arch.name,
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


COMMANDS = [inspect]
