"""`trimoe plan` for checkpoints that are not GGUF: the unquantized one, and NVFP4A16."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimoe.errors import BadInput, CheckpointError, TrimoeError, UsageError

if TYPE_CHECKING:
    from trimoe.model.checkpoint import Checkpoint
    from trimoe.quantize.plan.plan import Serving
    from trimoe.quantize.types.blueprint import Blueprint


def open_headers(model: str, load: Any) -> "tuple[Checkpoint, bool] | None":
    """(headers, whether they were read) of a directory, config.json or shipped name; None for a GGUF file.

    `load` gives the configuration where there are no headers. Raises what is wrong with them.
    """
    from trimoe.model.checkpoint import open_checkpoint
    from trimoe.model.gguf.file import find_gguf
    from trimoe.quantize.plan.checkpoint_layout import checkpoint_of_config

    path = Path(model)
    if path.exists() and find_gguf(path) is not None:
        return None
    if path.is_dir():
        return open_checkpoint(path), True
    return checkpoint_of_config(model, load(model)), False


def unquantized(model: str, keep: int, load: Any) -> dict[str, Any] | None:
    """Bytes of the unquantized checkpoint; None for a GGUF file, or where headers cannot be had."""
    from trimoe.quantize.plan.checkpoint_size import checkpoint_bytes

    try:
        found = open_headers(model, load)
    except CheckpointError:
        return None
    return found and {"file_bytes": checkpoint_bytes(found[0], keep), "exact": found[1]}


def nvfp4(model: str, keep: int | None, layout: str, load: Any) -> dict[str, Any]:
    """The size of an NVFP4A16 checkpoint as JSON values. Raises what is wrong with the model."""
    from trimoe.quantize.nvfp4.rules import rules
    from trimoe.quantize.nvfp4.sizes import predict

    found = open_headers(model, load)
    if found is None:
        raise BadInput(
            f"{model} is a GGUF file",
            expected=f"a checkpoint for {rules().tier}",
            remedy="give the checkpoint's directory or its config.json",
        )
    checkpoint, read = found
    size = predict(checkpoint, layout, keep=None if keep == checkpoint.num_experts else keep)
    return {
        "tier": rules().tier,
        "layout": layout,
        "experts": checkpoint.num_experts,
        "keep": keep or checkpoint.num_experts,
        "exact": read,
        "file_bytes": size.file_bytes,
        "tensor_bytes": size.tensor_bytes,
        "files": size.files,
        "weights": size.values,
        "quantized_weights": size.quantized_values,
        "quantized_bytes": size.quantized_bytes,
        "bits_per_weight": round(size.bits_per_weight, 4),
    }


def nvfp4_or_none(model: str, keep: int, load: Any) -> dict[str, Any] | None:
    """`nvfp4` for a table: None where this model has no such tier."""
    from trimoe.quantize.nvfp4.rules import LAYOUTS

    try:
        return nvfp4(model, keep, LAYOUTS[0], load)
    except TrimoeError:
        return None


def with_memory(data: dict[str, Any], blueprint: "Blueprint | None", serving: "Serving") -> dict[str, Any]:
    """The plan of an NVFP4 checkpoint with its weights and cache; what else a server takes is its setting."""
    from trimoe.quantize.plan.plan import kv_cache_bytes

    if serving.kv_type not in ("F16", "BF16"):
        raise UsageError(
            f"--kv {serving.kv_type.lower()} is a cache type of llama.cpp",
            expected="f16",
            remedy=f"{data['tier']} is served by others: leave --kv out",
        )
    cache = kv_cache_bytes(blueprint, serving) if blueprint else None
    memory = {
        "weights": data["tensor_bytes"],
        "kv_cache": cache,
        "total": None if cache is None else data["tensor_bytes"] + cache,
    }
    return {
        **data,
        "context": serving.context,
        "parallel": serving.parallel,
        "kv": serving.kv_type.lower(),
        "memory": memory,
    }


def text_of(data: dict[str, Any]) -> str:
    """The plan for people."""
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
            f"{data['kv']}), without the server's own buffers"
        )
    return "\n".join(lines)
