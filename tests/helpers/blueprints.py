"""GGUF files with the real widths of Gemma 4 26B and holes instead of weights: for llama-quantize's dry run.

Written with the gguf package (not our writer); a dry run reads the header alone, so the data stay a hole in the file.
"""

import re
import subprocess
from math import prod
from pathlib import Path

import numpy as np

from trimoe.llamacpp.tools import LlamaCpp
from trimoe.quantize.plan.shipped import shipped_config
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.config_blueprint import blueprint_of_config

_DRY = re.compile(
    r"\[ *\d+/ *\d+\] (\S+) +- \[[^\]]*\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?"
)


def real_width(layers: int, experts: int) -> Blueprint:
    """The shipped model's shapes with fewer layers (every sixth one full) and experts."""
    config = shipped_config("gemma-4-26B-A4B")
    assert config is not None
    text = config["text_config"]
    kinds = text["layer_types"][:layers] if layers > 5 else ["sliding_attention", "full_attention"] * (layers // 2)
    text = {**text, "num_hidden_layers": layers, "layer_types": kinds}
    return blueprint_of_config("real width", {**config, "text_config": text}).with_experts(experts)


def write_hollow(path: Path, blueprint: Blueprint) -> Path:
    """A file of these tensors that llama.cpp opens; the weights are a hole that reads as zeros."""
    import gguf

    writer = gguf.GGUFWriter(path, blueprint.facts.architecture)
    writer.add_block_count(blueprint.facts.layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(blueprint.hidden)
    writer.add_feed_forward_length(2112)
    writer.add_head_count(blueprint.attention[0].kv_heads * blueprint.facts.heads_per_kv)
    writer.add_head_count_kv([layer.kv_heads for layer in blueprint.attention])
    full = max(layer.key_size for layer in blueprint.attention)
    for key, value in {
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.sliding_window": 1024,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "expert_count": blueprint.facts.experts,
        "expert_used_count": 8,
        "expert_feed_forward_length": 704,
        "rope.dimension_count": full,
        "rope.dimension_count_swa": 256,
    }.items():
        writer.add_uint32(f"gemma4.{key}", value)
    writer.add_array(
        "gemma4.attention.sliding_window_pattern", [layer.window is not None for layer in blueprint.attention]
    )
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(32)
    total = 0
    for tensor in blueprint.tensors:
        width = 4 if tensor.dtype == "F32" else 2
        nbytes = prod(tensor.shape) * width
        total += -(-nbytes // 32) * 32
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(f"u{width}"), nbytes, raw_dtype=gguf.GGMLQuantizationType[tensor.dtype]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as handle:
        handle.truncate(-(-path.stat().st_size // 32) * 32 + total)
    return path


def write_imatrix(path: Path, shapes: dict[str, tuple[int, int]], counts: dict[str, list[float]] | None = None) -> Path:
    """An imatrix of entries name -> (matrices, inputs) with ones; `counts` per matrix."""
    import gguf

    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in shapes.items():
        seen = (counts or {}).get(name, [64.0] * shape[0])
        writer.add_tensor(f"{name}.in_sum2", np.ones(shape, np.float32) * 64)
        writer.add_tensor(f"{name}.counts", np.array(seen, np.float32).reshape(shape[0], 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dry_run(llamacpp: LlamaCpp, model: Path, kind: str, *options: str) -> dict[str, str]:
    """tensor -> type as llama-quantize says it would be, in its order."""
    command = [llamacpp.program("llama-quantize"), "--dry-run", *options, model, kind, "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-1500:]
    return {m[1]: (m[3] or m[2]).upper() for m in _DRY.finditer(answer.stdout + answer.stderr)}
