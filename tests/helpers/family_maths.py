"""What each family computes, written down from its publication: routing of one token, output of one expert.

Float64, from the tensors as they lie on disk; nothing of the engine and no module of transformers takes part, so that a
mistake in either cannot confirm itself.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Vector = Any  # float64 tensor
Weights = dict[str, Any]


@dataclass(frozen=True)
class Routed:
    """Where one token goes."""

    logits: Vector
    preference: Vector
    """The E values of which the largest are chosen."""
    experts: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Maths:
    """One family. `router` and `experts` are the modules of a decoder layer whose inputs are recorded."""

    router: str
    experts: str
    route: Callable[[Weights, dict[str, Any], Vector], Routed]
    expert: Callable[[Weights, dict[str, Any], int, Vector], tuple[Vector, Vector]]
    """The inner activations and the output for one token."""
    top_k: str = "num_experts_per_tok"
    scales_input: bool = False


def top(values: Vector, k: int) -> list[int]:
    """Ids of the k largest, largest first."""
    return sorted(range(len(values)), key=lambda e: -values[e].item())[:k]


def rms(x: Vector, eps: float) -> Vector:
    return x / torch.sqrt((x * x).mean() + eps)


def silu(x: Vector) -> Vector:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: Vector) -> Vector:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


# ---------------------------------------------------------------- routing


def softmax_then_top(renormalise: bool | str, matrix: str = "mlp.gate.weight", factor: str = "") -> Any:
    """Softmax over all experts; the k largest; divided by their sum if `renormalise` (or the config key it names)."""

    def route(w: Weights, config: dict[str, Any], x: Vector) -> Routed:
        logits = w[matrix] @ x
        scores = torch.exp(logits - logits.max())
        scores = scores / scores.sum()
        chosen = top(scores, config["k"])
        weights = scores[chosen]
        if config[renormalise] if isinstance(renormalise, str) else renormalise:
            weights = weights / weights.sum()
        return Routed(logits, scores, chosen, (weights * config.get(factor, 1.0)).tolist())

    return route


def top_then_softmax(matrix: str, bias: str = "") -> Any:
    """The k largest logits; softmax over these alone."""

    def route(w: Weights, config: dict[str, Any], x: Vector) -> Routed:
        logits = w[matrix] @ x
        if bias:
            logits = logits + w[bias]
        chosen = top(logits, config["k"])
        weights = torch.exp(logits[chosen])
        return Routed(logits, logits, chosen, (weights / weights.sum()).tolist())

    return route


def corrected(score: str, matrix: str, correction: str, factor: str = "", least: float = 0.0) -> Any:
    """Scores plus a correction choose; the scores alone, divided by their sum, weigh."""

    def route(w: Weights, config: dict[str, Any], x: Vector) -> Routed:
        logits = w[matrix] @ x
        scores = 1 / (1 + torch.exp(-logits))
        if score == "softmax":
            scores = torch.exp(logits - logits.max())
            scores = scores / scores.sum()
        preference = scores + w[correction].reshape(-1)
        chosen = top(preference, config["k"])
        weights = scores[chosen]
        weights = weights / max(weights.sum().item(), least)
        return Routed(logits, preference, chosen, (weights * config.get(factor, 1.0)).tolist())

    return route


def route_gemma4(w: Weights, config: dict[str, Any], x: Vector) -> Routed:
    x = rms(x, config["rms_norm_eps"]) * w["router.scale"] * len(x) ** -0.5
    found = softmax_then_top(True, "router.proj.weight")(w, config, x)
    scale = w["router.per_expert_scale"]
    weights = [v * scale[e].item() for e, v in zip(found.experts, found.weights, strict=True)]
    return Routed(found.logits, found.preference, found.experts, weights)


def route_llama4(w: Weights, config: dict[str, Any], x: Vector) -> Routed:
    logits = w["feed_forward.router.weight"] @ x
    chosen = top(logits, config["k"])
    return Routed(logits, logits, chosen, (1 / (1 + torch.exp(-logits[chosen]))).tolist())


# ---------------------------------------------------------------- experts


def per_expert(block: str, gate: str, up: str, down: str) -> Any:
    """One tensor per expert."""

    def expert(w: Weights, config: dict[str, Any], e: int, x: Vector) -> tuple[Vector, Vector]:
        g, u, d = (w[f"{block}.experts.{e}.{name}.weight"] for name in (gate, up, down))
        inner = silu(g @ x) * (u @ x)
        return inner, d @ inner

    return expert


def stacked(gate_up: str, down: str, activation: Callable[[Vector], Vector] = silu) -> Any:
    """[E, 2I, H] with the gate in the first half, and [E, H, I]."""

    def expert(w: Weights, config: dict[str, Any], e: int, x: Vector) -> tuple[Vector, Vector]:
        both = w[gate_up][e]
        half = len(both) // 2
        inner = activation(both[:half] @ x) * (both[half:] @ x)
        return inner, w[down][e] @ inner

    return expert


def expert_llama4(w: Weights, config: dict[str, Any], e: int, x: Vector) -> tuple[Vector, Vector]:
    """[E, H, 2I] with the gate in the first half, and [E, I, H]."""
    both, down = w["feed_forward.experts.gate_up_proj"][e], w["feed_forward.experts.down_proj"][e]
    half = both.shape[1] // 2
    inner = silu(x @ both[:, :half]) * (x @ both[:, half:])
    return inner, inner @ down


def expert_gpt_oss(w: Weights, config: dict[str, Any], e: int, x: Vector) -> tuple[Vector, Vector]:
    """[E, H, 2I] with gate and up interleaved; clamped, with biases: (up + 1) * gate * sigmoid(1.702 gate)."""
    base, limit = "mlp.experts.", config["swiglu_limit"]
    both = x @ w[base + "gate_up_proj"][e] + w[base + "gate_up_proj_bias"][e]
    gate = both[0::2].clamp(max=limit)
    up = both[1::2].clamp(min=-limit, max=limit)
    inner = (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
    return inner, inner @ w[base + "down_proj"][e] + w[base + "down_proj_bias"][e]


PROJ = per_expert("mlp", "gate_proj", "up_proj", "down_proj")
W123 = per_expert("block_sparse_moe", "w1", "w3", "w2")
DEEPSEEK = corrected("sigmoid", "mlp.gate.weight", "mlp.gate.e_score_correction_bias", "routed_scaling_factor")


def expert_qwen3_5(w: Weights, config: dict[str, Any], e: int, x: Vector) -> tuple[Vector, Vector]:
    """Published stacked; one tensor per expert as transformers saves it."""
    layout = stacked("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    return (layout if "mlp.experts.gate_up_proj" in w else PROJ)(w, config, e, x)


MATHS: dict[str, Maths] = {
    "gemma4_text": Maths(
        "router",
        "experts",
        route_gemma4,
        stacked("experts.gate_up_proj", "experts.down_proj", gelu_tanh),
        top_k="top_k_experts",
    ),
    "qwen3_moe": Maths("mlp.gate", "mlp.experts", softmax_then_top("norm_topk_prob"), PROJ),
    "qwen2_moe": Maths("mlp.gate", "mlp.experts", softmax_then_top("norm_topk_prob"), PROJ),
    "qwen3_next": Maths("mlp.gate", "mlp.experts", softmax_then_top("norm_topk_prob"), PROJ),
    "qwen3_5_moe_text": Maths("mlp.gate", "mlp.experts", softmax_then_top(True), expert_qwen3_5),
    "olmoe": Maths("mlp.gate", "mlp.experts", softmax_then_top("norm_topk_prob"), PROJ),
    "mixtral": Maths("mlp.gate", "mlp.experts", softmax_then_top(True, "block_sparse_moe.gate.weight"), W123),
    "gpt_oss": Maths(
        "mlp.router", "mlp.experts", top_then_softmax("mlp.router.weight", "mlp.router.bias"), expert_gpt_oss
    ),
    "deepseek_v2": Maths("mlp.gate", "mlp.experts", softmax_then_top(False, factor="routed_scaling_factor"), PROJ),
    "deepseek_v3": Maths("mlp.gate", "mlp.experts", DEEPSEEK, PROJ),
    "glm4_moe": Maths("mlp.gate", "mlp.experts", DEEPSEEK, PROJ),
    "lfm2_moe": Maths(
        "feed_forward.gate",
        "feed_forward.experts",
        corrected("sigmoid", "feed_forward.gate.weight", "feed_forward.expert_bias", "routed_scaling_factor"),
        per_expert("feed_forward", "w1", "w3", "w2"),
    ),
    "jamba": Maths(
        "feed_forward.router",
        "feed_forward.experts",
        softmax_then_top(False, "feed_forward.router.weight"),
        per_expert("feed_forward", "gate_proj", "up_proj", "down_proj"),
    ),
    "minimax_m2": Maths(
        "mlp.gate",
        "mlp.experts",
        corrected("sigmoid", "block_sparse_moe.gate.weight", "block_sparse_moe.e_score_correction_bias"),
        W123,
    ),
    "ernie4_5_moe": Maths(
        "mlp.gate",
        "mlp.experts",
        corrected("softmax", "mlp.gate.weight", "mlp.moe_statics.e_score_correction_bias", least=1e-12),
        PROJ,
        top_k="moe_k",
    ),
    "granitemoe": Maths(
        "block_sparse_moe.router",
        "block_sparse_moe.experts",
        top_then_softmax("block_sparse_moe.router.layer.weight"),
        stacked("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    ),
    "llama4_text": Maths("feed_forward.router", "feed_forward.experts", route_llama4, expert_llama4, scales_input=True),
}


@dataclass(frozen=True)
class OnDisk:
    """A checkpoint as files: settings of its text model and the float64 weights of one layer."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        config = json.loads((self.folder / "config.json").read_text())
        text = config.get("text_config", config)
        return text | {"k": text[self.maths_of(text).top_k]}

    def maths_of(self, text: dict[str, Any]) -> Maths:
        return MATHS[text["model_type"]]

    def layer(self, number: int) -> Weights:
        """Name after the layer's prefix -> tensor."""
        found: Weights = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "pt") as handle:
                for name in handle.keys():  # noqa: SIM118 not a dict
                    head, _, rest = name.partition(f"layers.{number}.")
                    if rest and head in ("model.", "model.language_model.", "language_model.model."):
                        found[rest] = handle.get_tensor(name).double()
        return found
