"""Random checkpoints of every family, small enough for the naive oracle, with the tensor names of the published ones.

They are made through transformers' own classes: 2 or 3 layers, 8 experts, every norm, scale and bias away from its
default, routing spread. What `save_pretrained` writes is the published layout (its conversion rules are reversed on
saving); where it is not, `publish` puts it right. Shards are dealt out tensor by tensor, so that experts of one layer
lie in different files. `MADE` is the list; `write(made, folder)` writes one.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.byte_tokenizer import VOCABULARY, write_tokenizer

EXPERTS = 8
TEXT = 250
"""Tokens from here on stand for images and sound in the multimodal checkpoints."""
Settings = dict[str, Any]
Tensors = dict[str, Any]


def _nothing(tensors: Tensors, settings: Settings) -> None:
    """What `save_pretrained` wrote is the published layout."""


@dataclass(frozen=True)
class Made:
    """One checkpoint to make: a family of trimoe, a class of transformers, its settings."""

    name: str
    family: str
    model: str
    """Name of transformers' model class; the class of its settings follows from it."""
    settings: Settings
    moe_layers: tuple[int, ...]
    top_k: int = 2
    publish: Callable[[Tensors, Settings], None] = _nothing
    """Edits tensors and config.json to what the published checkpoints have."""
    bare: bool = True
    """AutoModelForCausalLM has a place for every tensor."""
    quantized: bool = False
    shards: int = 1
    peculiar: tuple[str, ...] = (".gate.weight",)
    """Ends of names of tensors with an expert axis besides the experts' matrices: routers, biases, corrections."""

    @property
    def drop(self) -> dict[int, tuple[int, ...]]:
        """Three random experts in each layer, different ones in each."""
        rng = random.Random(self.name)
        return {layer: tuple(sorted(rng.sample(range(EXPERTS), 3))) for layer in self.moe_layers}


def _text(**changes: Any) -> Settings:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": False,
    } | changes


def _fine(**changes: Any) -> Settings:
    """Experts with a width of their own."""
    return _text(intermediate_size=24, moe_intermediate_size=16, **changes)


GEMMA4 = _text(
    num_hidden_layers=2,
    layer_types=["sliding_attention", "full_attention"],
    intermediate_size=24,
    moe_intermediate_size=16,
    enable_moe_block=True,
    num_experts=EXPERTS,
    top_k_experts=2,
    global_head_dim=16,
    hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=VOCABULARY,
    sliding_window=16,
    num_kv_shared_layers=0,
    tie_word_embeddings=True,
)
QWEN2 = _fine(num_experts=EXPERTS, num_experts_per_tok=2, shared_expert_intermediate_size=24)
HYBRID = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DEEPSEEK = _fine(
    head_dim=8,
    num_key_value_heads=2,
    n_routed_experts=EXPERTS,
    num_experts_per_tok=2,
    n_shared_experts=1,
    first_k_dense_replace=1,
    kv_lora_rank=16,
    q_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.5,
)
GPT_OSS = _text(
    intermediate_size=32,
    num_local_experts=EXPERTS,
    num_experts_per_tok=2,
    sliding_window=16,
    swiglu_limit=0.5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
LLAMA4 = _text(
    intermediate_size=16,
    intermediate_size_mlp=24,
    num_local_experts=EXPERTS,
    num_experts_per_tok=1,
    moe_layers=[1, 2],
    attention_chunk_size=64,
)
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
LLAMA_VISION = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 64,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
}
GEMMA_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 64,
}


def _count_is(name: str, saved_as: str) -> Callable[[Tensors, Settings], None]:
    """The published config.json counts experts under another name than transformers 5 saves."""

    def publish(_: Tensors, settings: Settings) -> None:
        settings[name] = settings.pop(saved_as)

    return publish


def _draft_block(tensors: Tensors, source: str, target: str) -> None:
    """A multi-token-prediction block, with other weights than the layer it is modelled on."""
    for name in [n for n in tensors if n.startswith(source)]:
        tensors[target + name.removeprefix(source)] = tensors[name] * 0.75
    norm = next(tensors[n] for n in tensors if n.endswith("norm.weight") and len(tensors[n]) == 32)
    owner = target if target.startswith("model.layers.") else "mtp."
    tensors[f"{owner}enorm.weight"] = norm * 0.5


def _qwen3_next(tensors: Tensors, _: Settings) -> None:
    _draft_block(tensors, "model.layers.2.", "mtp.layers.0.")


def _qwen3_5(tensors: Tensors, settings: Settings) -> None:
    """Stacked in the decoder layers, one tensor per expert in the multi-token-prediction block."""
    import torch

    _draft_block(tensors, "model.language_model.layers.2.", "mtp.layers.0.")
    for layer in range(3):
        base = f"model.language_model.layers.{layer}.mlp.experts."
        parts = {p: [tensors.pop(f"{base}{e}.{p}_proj.weight") for e in range(EXPERTS)] for p in ("gate", "up", "down")}
        tensors[base + "gate_up_proj"] = torch.cat([torch.stack(parts["gate"]), torch.stack(parts["up"])], 1)
        tensors[base + "down_proj"] = torch.stack(parts["down"])
    settings["text_config"]["mtp_num_hidden_layers"] = 1


def _numbered_draft(tensors: Tensors, settings: Settings) -> None:
    _draft_block(tensors, "model.layers.2.", "model.layers.3.")
    settings["num_nextn_predict_layers"] = 1


def _mxfp4(tensors: Tensors, settings: Settings) -> None:
    """Random 4-bit codes and exponents in place of the experts' matrices."""
    import torch

    for layer in range(3):
        base = f"model.layers.{layer}.mlp.experts."
        for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
            del tensors[base + name]
            tensors[f"{base}{name}_blocks"] = torch.randint(0, 256, (EXPERTS, rows, 1, 16), dtype=torch.uint8)
            tensors[f"{base}{name}_scales"] = torch.randint(121, 125, (EXPERTS, rows, 1), dtype=torch.uint8)
    settings["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "embed_tokens", "lm_head"],
    }


CORRECTION = (".gate.weight", "e_score_correction_bias")
MADE: tuple[Made, ...] = (
    Made("gemma4", "gemma4", "Gemma4ForCausalLM", GEMMA4, (0, 1), peculiar=("router.proj.weight", "per_expert_scale")),
    Made(
        "gemma4-multimodal",
        "gemma4",
        "Gemma4ForConditionalGeneration",
        {
            "text_config": GEMMA4,
            "vision_config": GEMMA_VISION,
            "audio_config": None,
            "image_token_id": 250,
            "boi_token_id": 251,
            "eoi_token_id": 252,
            "video_token_id": 253,
            "audio_token_id": 254,
            "boa_token_id": 255,
            "eoa_token_id": 256,
        },
        (0, 1),
        shards=2,
        peculiar=("router.proj.weight", "per_expert_scale"),
    ),
    Made(
        "qwen3_moe",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _fine(num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0]),
        (1, 2),
        shards=3,
        publish=_count_is("num_experts", "num_local_experts"),
    ),
    Made("qwen2_moe", "qwen2_moe", "Qwen2MoeForCausalLM", QWEN2 | {"qkv_bias": True}, (0, 1, 2)),
    Made("qwen3_next", "qwen3_next", "Qwen3NextForCausalLM", QWEN2 | HYBRID, (0, 1, 2), publish=_qwen3_next),
    Made(
        "qwen3_5_moe",
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        {
            "text_config": QWEN2 | HYBRID,
            "vision_config": QWEN_VISION,
            "image_token_id": 250,
            "video_token_id": 251,
            "vision_start_token_id": 252,
            "vision_end_token_id": 253,
        },
        (0, 1, 2),
        publish=_qwen3_5,
        shards=2,
    ),
    Made("qwen3_5_moe-per-expert", "qwen3_5_moe", "Qwen3_5MoeForCausalLM", QWEN2 | HYBRID, (0, 1, 2)),
    Made(
        "olmoe",
        "olmoe",
        "OlmoeForCausalLM",
        _text(intermediate_size=16, num_experts=EXPERTS, num_experts_per_tok=3),
        (0, 1, 2),
        top_k=3,
        shards=2,
    ),
    Made(
        "mixtral",
        "mixtral",
        "MixtralForCausalLM",
        _text(intermediate_size=16, num_local_experts=EXPERTS, num_experts_per_tok=2),
        (0, 1, 2),
    ),
    Made(
        "gpt_oss",
        "gpt_oss",
        "GptOssForCausalLM",
        GPT_OSS,
        (0, 1, 2),
        peculiar=("router.weight", "router.bias", "gate_up_proj_bias", "down_proj_bias"),
    ),
    Made(
        "gpt_oss-mxfp4",
        "gpt_oss",
        "GptOssForCausalLM",
        GPT_OSS,
        (0, 1, 2),
        publish=_mxfp4,
        quantized=True,
        shards=2,
        peculiar=("gate_up_proj_scales", "down_proj_bias"),
    ),
    Made(
        "lfm2_moe",
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        _fine(
            num_experts=EXPERTS,
            num_experts_per_tok=2,
            num_dense_layers=1,
            layer_types=["conv", "full_attention", "conv"],
            routed_scaling_factor=0.7,
        ),
        (1, 2),
        peculiar=("feed_forward.expert_bias",),
    ),
    Made(
        "jamba",
        "jamba",
        "JambaForCausalLM",
        _text(
            intermediate_size=24,
            num_experts=EXPERTS,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=8,
            use_mamba_kernels=False,
        ),
        (1,),
        peculiar=("feed_forward.router.weight",),
    ),
    Made("deepseek_v2", "deepseek_v2", "DeepseekV2ForCausalLM", DEEPSEEK, (1, 2)),
    Made(
        "deepseek_v3",
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        DEEPSEEK,
        (1, 2),
        shards=2,
        peculiar=CORRECTION,
        publish=_numbered_draft,
        bare=False,
    ),
    Made(
        "glm4_moe",
        "glm4_moe",
        "Glm4MoeForCausalLM",
        _fine(
            n_routed_experts=EXPERTS,
            num_experts_per_tok=3,
            n_shared_experts=1,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            use_qk_norm=True,
            attention_bias=True,
            routed_scaling_factor=0.7,
        ),
        (1, 2),
        top_k=3,
        publish=_numbered_draft,
        bare=False,
        peculiar=CORRECTION,
    ),
    Made(
        "minimax_m2",
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        _text(intermediate_size=16, num_local_experts=EXPERTS, num_experts_per_tok=2),
        (0, 1, 2),
        peculiar=CORRECTION,
    ),
    Made(
        "ernie4_5_moe",
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        _fine(
            moe_num_experts=EXPERTS,
            moe_k=2,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            tie_word_embeddings=True,
        ),
        (1, 2),
        peculiar=CORRECTION,
    ),
    Made(
        "granitemoe",
        "granitemoe",
        "GraniteMoeForCausalLM",
        _text(
            intermediate_size=16,
            num_local_experts=EXPERTS,
            num_experts_per_tok=2,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            logits_scaling=2.0,
            attention_multiplier=0.2,
        ),
        (0, 1, 2),
        peculiar=("router.layer.weight",),
    ),
    Made("llama4", "llama4", "Llama4ForCausalLM", LLAMA4, (1, 2), top_k=1, peculiar=("router.weight",)),
    Made(
        "llama4-multimodal",
        "llama4",
        "Llama4ForConditionalGeneration",
        {"text_config": LLAMA4 | {"num_experts_per_tok": 2, "moe_layers": [0, 1, 2]}, "vision_config": LLAMA_VISION},
        (0, 1, 2),
        bare=False,
        shards=2,
        peculiar=("router.weight",),
    ),
)


def write(made: Made, folder: Path, seed: int = 0) -> Path:
    """The checkpoint in float32 with a tokenizer of bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    model = _model(made)
    _randomise(model)
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    made.publish(tensors, settings)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "model.safetensors").unlink()
    files = [f"model-{i + 1:05d}-of-{made.shards:05d}.safetensors" for i in range(made.shards)]
    if made.shards == 1:
        files = ["model.safetensors"]
    weight_map = {name: files[i % made.shards] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensor.contiguous() for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    if made.shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    return folder


def _model(made: Made) -> Any:
    import transformers

    kind = made.model.removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    text = made.model.endswith("ForCausalLM") and hasattr(transformers, f"{kind}TextConfig")
    config = getattr(transformers, f"{kind}TextConfig" if text else f"{kind}Config")(**made.settings)
    return getattr(transformers, made.model)(config).float()


def _randomise(model: Any) -> None:
    """Values that leave nothing at its default and spread the routing."""
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "A_log" in name or not tensor.is_floating_point():
                continue
            if "norm" in name or "scal" in name or "dt_bias" in name:  # dt_bias: a state that forgets
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            else:
                routes = "router" in name or ".gate.weight" in name or "correction" in name
                # Linear attention divides by small norms: large values would only show how rounding grows.
                tensor.copy_(
                    torch.randn_like(tensor)
                    * (0.4 if routes else 0.05 if "linear_attn" in name or "mamba" in name else 0.25)
                )
