"""Quantized checkpoints byte by byte, with the tensor names, types and shapes of published ones and random contents.

Two layers, 8 experts, hidden size 64, expert width 32. One tensor per expert and module, or stacked; no torch.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.model.safetensors import header_bytes, nbytes_of

LAYERS, EXPERTS, HIDDEN, WIDTH = 2, 8, 64, 32
Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> type, shape
Module = Callable[[str, int, int], Entries]  # module's name with a dot at the end, outputs, inputs -> its tensors


def ct_nvfp4(name: str, out: int, ins: int) -> Entries:
    """compressed-tensors nvfp4-pack-quantized, with activations (RedHatAI/*-NVFP4)."""
    return {
        name + "weight_packed": ("U8", (out, ins // 2)),
        name + "weight_scale": ("F8_E4M3", (out, ins // 16)),
        name + "weight_global_scale": ("F32", (1,)),
        name + "input_global_scale": ("F32", (1,)),
    }


def ct_int4(name: str, out: int, ins: int) -> Entries:
    """compressed-tensors pack-quantized, groups of 32, asymmetric (moonshotai/Kimi-K2-Thinking: symmetric)."""
    return {
        name + "weight_packed": ("I32", (out, ins // 8)),
        name + "weight_scale": ("BF16", (out, ins // 32)),
        name + "weight_shape": ("I64", (2,)),
        name + "weight_zero_point": ("I32", (out // 8, ins // 32)),
    }


def ct_fp8(name: str, out: int, ins: int) -> Entries:
    """compressed-tensors float-quantized, a scale per channel (RedHatAI/*-FP8-dynamic)."""
    return {name + "weight": ("F8_E4M3", (out, ins)), name + "weight_scale": ("BF16", (out, 1))}


def modelopt_nvfp4(name: str, out: int, ins: int) -> Entries:
    """Model Optimizer NVFP4 (nvidia/Qwen3-30B-A3B-NVFP4)."""
    return {
        name + "weight": ("U8", (out, ins // 2)),
        name + "weight_scale": ("F8_E4M3", (out, ins // 16)),
        name + "weight_scale_2": ("F32", ()),
        name + "input_scale": ("F32", ()),
    }


def modelopt_fp8(name: str, out: int, ins: int) -> Entries:
    """Model Optimizer FP8, one scale per tensor (nvidia/*-FP8)."""
    return {
        name + "weight": ("F8_E4M3", (out, ins)),
        name + "weight_scale": ("F32", ()),
        name + "input_scale": ("F32", ()),
    }


def fp8_block(name: str, out: int, ins: int) -> Entries:
    """Blocks of 128 x 128 (deepseek-ai/DeepSeek-V3, Qwen/Qwen3-30B-A3B-FP8)."""
    return {
        name + "weight": ("F8_E4M3", (out, ins)),
        name + "weight_scale_inv": ("F32", (math.ceil(out / 128), math.ceil(ins / 128))),
    }


def gptq(name: str, out: int, ins: int) -> Entries:
    """4 bit, groups of 32 (Qwen/Qwen3-30B-A3B-GPTQ-Int4)."""
    return {
        name + "qweight": ("I32", (ins // 8, out)),
        name + "qzeros": ("I32", (ins // 32, out // 8)),
        name + "scales": ("F16", (ins // 32, out)),
        name + "g_idx": ("I32", (ins,)),
    }


def awq(name: str, out: int, ins: int) -> Entries:
    """4 bit, groups of 32, GEMM order."""
    return {
        name + "qweight": ("I32", (ins, out // 8)),
        name + "qzeros": ("I32", (ins // 32, out // 8)),
        name + "scales": ("F16", (ins // 32, out)),
    }


def bnb_nf4(name: str, out: int, ins: int) -> Entries:
    """bitsandbytes NF4 with double quantization (unsloth/*-bnb-4bit)."""
    count = out * ins
    return {
        name + "weight": ("U8", (count // 2, 1)),
        name + "weight.absmax": ("U8", (count // 64,)),
        name + "weight.quant_map": ("F32", (16,)),
        name + "weight.nested_absmax": ("F32", (1,)),
        name + "weight.nested_quant_map": ("F32", (256,)),
        name + "weight.quant_state.bitsandbytes__nf4": ("U8", (77,)),
    }


def plain(name: str, out: int, ins: int) -> Entries:
    """Not quantized."""
    return {name + "weight": ("BF16", (out, ins))}


MODULES: dict[str, tuple[Module, dict[str, Any]]] = {
    "ct-nvfp4": (ct_nvfp4, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
    "ct-int4": (ct_int4, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "ct-fp8": (ct_fp8, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "modelopt-nvfp4": (modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "modelopt-fp8": (modelopt_fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8-block": (fp8_block, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32}),
    "bnb-nf4": (bnb_nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def common(prefix: str) -> Entries:
    """What is not quantized: embedding, attention, norms."""
    found: Entries = {"model.embed_tokens.weight": ("BF16", (12, HIDDEN))}
    for layer in range(LAYERS):
        base = prefix.replace("{L}", str(layer))
        found |= {
            base + "self_attn.q_proj.weight": ("BF16", (HIDDEN, HIDDEN)),
            base + "input_layernorm.weight": ("BF16", (HIDDEN,)),
        }
    return found


def per_expert(prefix: str, expert: str, module: Module, exceptions: dict[str, Module] | None = None) -> Entries:
    """Every expert's three modules; `expert` has {E} and {M} (gate_proj, up_proj, down_proj). `exceptions` are modules
    that are stored in another way."""
    found: Entries = {}
    for layer in range(LAYERS):
        for number in range(EXPERTS):
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                place = expert.replace("{E}", str(number)).replace("{M}", matrix)
                name = prefix.replace("{L}", str(layer)) + place
                out, ins = (HIDDEN, WIDTH) if matrix == "down_proj" else (WIDTH, HIDDEN)
                found |= (exceptions or {}).get(name.rstrip("."), module)(name, out, ins)
    return found


def qwen(module: Module, exceptions: dict[str, Module] | None = None) -> Entries:
    """Qwen3-MoE."""
    prefix = "model.layers.{L}."
    routers: Entries = {f"model.layers.{i}.mlp.gate.weight": ("BF16", (EXPERTS, HIDDEN)) for i in range(LAYERS)}
    return common(prefix) | per_expert(prefix, "mlp.experts.{E}.{M}.", module, exceptions) | routers


def qwen_config(settings: dict[str, Any] | None) -> dict[str, Any]:
    """Fits `qwen`."""
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": LAYERS,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
    }
    return config | ({} if settings is None else {"quantization_config": settings})


def gemma(module: Module, expert: str) -> Entries:
    """Gemma 4 as quantizers store it, by one of several names."""
    prefix = "model.language_model.layers.{L}."
    routers: Entries = {}
    for layer in range(LAYERS):
        base = prefix.replace("{L}", str(layer)) + "router."
        routers |= {
            base + "proj.weight": ("BF16", (EXPERTS, HIDDEN)),
            base + "scale": ("BF16", (HIDDEN,)),
            base + "per_expert_scale": ("BF16", (EXPERTS,)),
        }
    return common(prefix) | per_expert(prefix, expert, module) | routers


def gemma_config(settings: dict[str, Any]) -> dict[str, Any]:
    """Fits `gemma`."""
    text = {
        "model_type": "gemma4_text",
        "num_hidden_layers": LAYERS,
        "num_experts": EXPERTS,
        "top_k_experts": 2,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
    }
    return {"model_type": "gemma4", "text_config": text, "quantization_config": settings}


def stacked(prefix: str, gate_up: Entries, down: Entries, more: Entries) -> Entries:
    """Layers of stacks; names without the layer prefix."""
    found = common(prefix)
    for layer in range(LAYERS):
        base = prefix.replace("{L}", str(layer))
        found |= {base + name: entry for part in (gate_up, down, more) for name, entry in part.items()}
    return found


def llama4_nvfp4(second: tuple[int, ...] = ()) -> tuple[Entries, dict[str, Any]]:
    """Model Optimizer NVFP4 of Llama 4 (nvidia/Llama-4-Scout-17B-16E-Instruct-FP4): stacked and transposed; `second` is
    the shape of weight_scale_2."""
    base = "feed_forward.experts."
    parts = []
    for name, ins, out in (("gate_up_proj", HIDDEN, 2 * WIDTH), ("down_proj", WIDTH, HIDDEN)):
        parts.append(
            {
                base + name: ("U8", (EXPERTS, ins // 2, out)),
                base + name + "_weight_scale": ("F8_E4M3", (EXPERTS, ins // 16, out)),
                base + name + "_weight_scale_2": ("F32", second),
                base + name + "_input_scale": ("F32", ()),
            }
        )
    tensors = stacked(
        "language_model.model.layers.{L}.", *parts, {"feed_forward.router.weight": ("BF16", (EXPERTS, HIDDEN))}
    )
    text = {
        "model_type": "llama4_text",
        "num_hidden_layers": LAYERS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
    }
    return tensors, {
        "model_type": "llama4",
        "text_config": text,
        "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    }


def gemma_fp8_stacked() -> tuple[Entries, dict[str, Any]]:
    """FP8 stacks with blocks of scales per expert, as transformers writes them."""
    gate_up = {
        "experts.gate_up_proj": ("F8_E4M3", (EXPERTS, 2 * WIDTH, HIDDEN)),
        "experts.gate_up_proj_scale_inv": ("F32", (EXPERTS, 1, 1)),
    }
    down = {
        "experts.down_proj": ("F8_E4M3", (EXPERTS, HIDDEN, WIDTH)),
        "experts.down_proj_scale_inv": ("F32", (EXPERTS, 2, 3)),
    }
    more = {
        "router.proj.weight": ("BF16", (EXPERTS, HIDDEN)),
        "router.scale": ("BF16", (HIDDEN,)),
        "router.per_expert_scale": ("BF16", (EXPERTS,)),
    }
    tensors = stacked("model.language_model.layers.{L}.", gate_up, down, more)
    return tensors, gemma_config({"quant_method": "fp8", "weight_block_size": [128, 128]})


def write(folder: Path, entries: Entries, config: dict[str, Any], seed: int = 0) -> Path:
    """A checkpoint of two shards, tensors dealt out alternately."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weight_map: dict[str, str] = {}
    for number in range(2):
        part = {name: entry for i, (name, entry) in enumerate(entries.items()) if i % 2 == number}
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        content = b"".join(rng.integers(0, 120, nbytes_of(*entry), dtype=np.uint8).tobytes() for entry in part.values())
        (folder / file).write_bytes(header_bytes(part, {"format": "pt"}) + content)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
