"""`trimoe inspect`: show family, layers, experts, layout and sizes of a model."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--finite", is_flag=True, help="Also read every weight and refuse NaN or infinity.")
@json_option
def inspect(model: Path, finite: bool, as_json: bool) -> None:
    """Show a model's family, layers, experts, layout and sizes.

    MODEL is a checkpoint directory or a GGUF file.

    Reads headers and samples only, unless --finite is given.

    \b
    Examples:
      trimoe inspect gemma-4-26B-A4B-it
      trimoe inspect gemma-4-26B-A4B-it --json
      trimoe inspect gemma-4-26B-A4B-it-Q4_K_M.gguf
    """
    from trimoe.model.facts import inspect_model

    facts = inspect_model(model, finite=finite)
    rows = _gguf_rows(facts) if facts["layout"] == "GGUF" else _checkpoint_rows(facts)
    width = max(len(label) for label, _ in rows) + 2
    emit(facts, "\n".join(f"{label:<{width}}{value}" for label, value in rows), as_json)


def _checkpoint_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("family", f"{facts['family']} ({', '.join(facts['dtypes'])})"),
        ("layers", f"{facts['layers']} ({facts['moe_layers']} with experts)"),
        ("experts", f"{facts['experts']} per layer, {facts['top_k']} active per token"),
        ("layout", f"{facts['layout']}, prefix {facts['prefix']}"),
        ("cut along experts", ", ".join(facts["roles"]) if not facts["cannot_cut"] else f"no: {facts['cannot_cut']}"),
        ("size", f"{facts['bytes']:,} bytes in {facts['tensors']} tensors, {facts['shards']} files"),
        ("experts' share", f"{facts['expert_bytes']:,} bytes, {_share(facts):.1f} %"),
        ("one expert", f"{facts['bytes_per_expert']:,} bytes in each layer"),
        ("fingerprint", str(facts["fingerprint"])),
    ]
    if groups := facts["groups"]:
        chosen = f"{groups['count']}, of which {groups['chosen']} serve a token; maps drop equally many of each"
        rows.insert(3, ("groups", chosen))
    if facts["draft_blocks"]:
        blocks = ", ".join(facts["draft_blocks"])
        rows.insert(4, ("drafting blocks", f"{blocks} (cut like the last layer with experts)"))
    rows += [("values", "all finite")] if facts["finite"] else []
    return [*rows, *(("warning", warning) for warning in facts["warnings"])]


def _gguf_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    types = [f"{name} {100 * size / max(1, facts['bytes']):.1f} %" for name, size in facts["dtypes"].items()]
    active = f"{facts['experts']} per layer, {facts['top_k']} active per token"
    files = f"{facts['shards']} file{'s' if facts['shards'] > 1 else ''}"
    return [
        ("family", f"{facts['family']}, GGUF" + (f" ({facts['name']})" if facts["name"] else "")),
        ("layers", f"{facts['layers']} ({facts['moe_layers']} with experts)"),
        ("experts", f"{active}, in {', '.join(facts['expert_dtypes'])}"),
        ("size", f"{facts['file_bytes']:,} bytes, {facts['tensors']} tensors in {files}"),
        ("types", ", ".join(types)),
        ("experts' share", f"{facts['expert_bytes']:,} bytes, {_share(facts):.1f} %"),
        ("one expert", f"{facts['bytes_per_expert']:,} bytes in each layer, on average"),
        ("fingerprint", str(facts["fingerprint"])),
    ]


def _share(facts: dict[str, Any]) -> float:
    """Per cent of the bytes that belong to experts."""
    return 100 * float(facts["expert_bytes"]) / max(1, int(facts["bytes"]))


COMMANDS = [inspect]
