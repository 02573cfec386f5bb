"""Checkpoints made byte by byte, with numpy alone: stacked and per-expert layouts, any sharding, no torch."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimoe.model.family.file import Family, parse_family
from trimoe.model.safetensors import header_bytes

Arrays = dict[str, np.ndarray]
_DTYPES = {"float32": "F32", "uint16": "BF16", "uint8": "U8"}  # uint16 arrays are bf16 bit patterns

# The forms that later families have on disk, all at once: one tensor per expert, a router with a bias and a correction
# term, shared experts that no cut touches, a first layer without experts, another name of the count.
PER_EXPERT = parse_family(
    """
name = "per_expert"
model_types = ["per_expert"]
[hf]
layer_prefixes = ["model.layers.{L}."]
scopes = ["mlp.experts.", "mlp.gate."]
dense_layer = "mlp.gate_proj.weight"
[hf.config]
num_layers = "num_hidden_layers"
num_experts = "n_routed_experts"
num_experts_also = ["num_local_experts"]
top_k = "num_experts_per_tok"
hidden = "hidden_size"
expert_width = "moe_intermediate_size"
groups = {count = "n_group", assumed = 1, chosen = "topk_group"}
[hf.roles]
gate = {tensor = "mlp.experts.{E}.gate_proj.weight", shape = ["I", "H"]}
up = {tensor = "mlp.experts.{E}.up_proj.weight", shape = ["I", "H"]}
down = {tensor = "mlp.experts.{E}.down_proj.weight", shape = ["H", "I"]}
router = {tensor = "mlp.gate.weight", shape = ["E", "H"]}
correction = {tensor = "mlp.gate.e_score_correction_bias", shape = ["E"], optional = true}
""",
    "test",
)
# A stack whose expert axis is not the first, next to transposed stacks with biases.
TRANSPOSED = parse_family(
    """
name = "transposed"
model_types = ["transposed"]
[hf]
layer_prefixes = ["model.layers.{L}.mlp."]
scopes = ["experts.", "router."]
[hf.config]
num_layers = "num_hidden_layers"
num_experts = "num_local_experts"
top_k = "num_experts_per_tok"
hidden = "hidden_size"
expert_width = "intermediate_size"
[hf.roles]
gate_up = {tensor = "experts.gate_up_proj", shape = ["E", "H", "2I"]}
gate_up_bias = {tensor = "experts.gate_up_proj_bias", shape = ["E", "2I"]}
down = {tensor = "experts.down_proj", shape = ["E", "I", "H"]}
router = {tensor = "router.weight", shape = ["H", "E"]}
router_bias = {tensor = "router.bias", shape = ["E"]}
""",
    "test",
)
TEST_FAMILIES: tuple[Family, ...] = (PER_EXPERT, TRANSPOSED)


def _random(rng: np.random.Generator, *shape: int, dtype: str = "uint16") -> np.ndarray:
    if dtype == "uint16":  # finite bf16: exponent below 0x7F80
        return rng.integers(0, 0x7F00, shape, dtype=np.uint16)
    return rng.standard_normal(shape).astype(dtype)


def gemma_arrays(
    layers: int = 2, experts: int = 8, hidden: int = 6, width: int = 4, *, prefix: str = "model.", seed: int = 0
) -> Arrays:
    """All kinds of tensor of a Gemma 4 mixture; per-expert scales are F32 to test alignment among BF16."""
    rng = np.random.default_rng(seed)
    arrays = {f"{prefix}embed_tokens.weight": _random(rng, 11, hidden)}
    for layer in range(layers):
        base = f"{prefix}layers.{layer}."
        arrays |= {
            base + "experts.gate_up_proj": _random(rng, experts, 2 * width, hidden),
            base + "experts.down_proj": _random(rng, experts, hidden, width),
            base + "router.proj.weight": _random(rng, experts, hidden),
            base + "router.per_expert_scale": _random(rng, experts, dtype="float32"),
            base + "router.scale": _random(rng, hidden),
            base + "mlp.down_proj.weight": _random(rng, hidden, 3),
            base + "input_layernorm.weight": _random(rng, experts),  # as long as there are experts, and not cut
        }
    arrays[f"{prefix}norm.weight"] = _random(rng, hidden)
    return arrays


def gemma_config(layers: int = 2, experts: int = 8, hidden: int = 6, width: int = 4, top_k: int = 2) -> dict:
    """The counting keys of a text-only Gemma 4, around something to be kept as it is."""
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "num_experts": experts,
        "rms_norm_eps": 1e-06,
        "num_hidden_layers": layers,
        "top_k_experts": top_k,
        "hidden_size": hidden,
        "moe_intermediate_size": width,
    }


def per_expert_arrays(experts: int = 6, hidden: int = 5, width: int = 3, seed: int = 0) -> Arrays:
    """Three layers of the PER_EXPERT family; layer 0 is dense, all have shared experts."""
    rng = np.random.default_rng(seed)
    arrays = {"model.layers.0.mlp.gate_proj.weight": _random(rng, width, hidden)}
    for layer in (1, 2):
        base = f"model.layers.{layer}.mlp."
        for e in range(experts):
            arrays[f"{base}experts.{e}.gate_proj.weight"] = _random(rng, width, hidden)
            arrays[f"{base}experts.{e}.up_proj.weight"] = _random(rng, width, hidden)
            arrays[f"{base}experts.{e}.down_proj.weight"] = _random(rng, hidden, width)
        arrays[base + "gate.weight"] = _random(rng, experts, hidden)
        arrays[base + "gate.e_score_correction_bias"] = _random(rng, experts, dtype="float32")
        arrays[base + "shared_experts.up_proj.weight"] = _random(rng, width, hidden)
    return arrays


def per_expert_config(experts: int = 6, hidden: int = 5, width: int = 3) -> dict:
    """Fits `per_expert_arrays`."""
    return {
        "model_type": "per_expert",
        "num_hidden_layers": 3,
        "n_routed_experts": experts,
        "num_experts_per_tok": 2,
        "hidden_size": hidden,
        "moe_intermediate_size": width,
        "n_group": 1,
    }


def transposed_arrays(layers: int = 2, experts: int = 7, hidden: int = 5, width: int = 3, seed: int = 0) -> Arrays:
    """The TRANSPOSED family."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for layer in range(layers):
        base = f"model.layers.{layer}.mlp."
        arrays |= {
            base + "experts.gate_up_proj": _random(rng, experts, hidden, 2 * width),
            base + "experts.gate_up_proj_bias": _random(rng, experts, 2 * width),
            base + "experts.down_proj": _random(rng, experts, width, hidden),
            base + "router.weight": _random(rng, hidden, experts),
            base + "router.bias": _random(rng, experts, dtype="float32"),
        }
    return arrays


def transposed_config(layers: int = 2, experts: int = 7, hidden: int = 5, width: int = 3) -> dict:
    """Fits `transposed_arrays`."""
    return {
        "model_type": "transposed",
        "num_hidden_layers": layers,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "hidden_size": hidden,
        "intermediate_size": width,
    }


def write_file(path: Path, arrays: Arrays) -> None:
    """One safetensors file."""
    entries = {name: (_DTYPES[str(a.dtype)], a.shape) for name, a in arrays.items()}
    path.write_bytes(header_bytes(entries, {"format": "pt"}) + b"".join(a.tobytes() for a in arrays.values()))


def write_checkpoint(folder: Path, arrays: Arrays, config: dict, shards: Sequence[int] | None = None) -> Path:
    """A checkpoint directory; `shards[i]` is the file of the i-th tensor, None means one file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.json").write_text("{}")
    if shards is None:
        write_file(folder / "model.safetensors", arrays)
        return folder
    used = sorted(set(shards))
    weight_map = {}
    for number, shard in enumerate(used, 1):
        file = f"model-{number:05d}-of-{len(used):05d}.safetensors"
        part = {name: arrays[name] for name, s in zip(arrays, shards, strict=True) if s == shard}
        write_file(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
