"""The forward pass of a layer's experts, written once for every family of transformers' experts interface.

Same values as transformers' own functions up to rounding; the row norms of the expert outputs are taken while those are
at hand. Layout differences (biases, transposed weights, own gate, post norm) come from the flags that transformers puts
on every experts module, never from class names. Experts outside that interface, which take tokens already scaled by
their weight and every expert every token, are fitted to it by `adapt`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimoe.measure.accumulate import IMPLEMENTATION, LayerRecorder
from trimoe.measure.routing import Router


@dataclass(frozen=True)
class ExpertsResult:
    """P routed pairs sorted by expert, then token. `order[p]` is the pair's place in the flattened [tokens, k]."""

    output: Any
    order: np.ndarray
    expert: np.ndarray
    norm: np.ndarray
    """float32 [P] Euclidean norms of the expert outputs before weighting; not finite where an output is not."""
    vectors: np.ndarray
    """float64 [experts, H] summed outputs of the measured tokens."""


def register() -> None:
    """Make the recording function known to transformers (idempotent)."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _dispatch)


def _dispatch(module: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    recorder: LayerRecorder | None = getattr(module, "trimoe_recorder", None)
    if recorder is None:
        return run_experts(module, hidden_states, top_k_index, top_k_weights).output
    return recorder.forward(module, hidden_states, top_k_index, top_k_weights)


def adapt(experts: Any, router: Router, transposed: bool) -> None:
    """Fit experts that take scaled tokens [E x T, H], all tokens for every expert, to the interface above.

    Their block repeats the tokens once per column of the router's scores, scales them, and sums the experts' outputs
    over these copies. Here the router's scores are narrowed to the k chosen columns, so that the block makes k copies
    instead of E; the outputs left out would be zero.
    """
    experts.has_gate, experts.has_bias, experts.has_post_expert_norm = True, False, False
    experts.is_transposed, experts.is_concatenated = transposed, True
    experts._apply_gate = lambda inner: _gated(experts.act_fn, inner)
    chosen: list[Any] = []

    def narrow(module: Any, args: Any, output: Any) -> Any:
        scores, logits = output
        chosen[:] = [router.preference(logits).topk(module.top_k, dim=-1).indices]
        return scores.gather(1, chosen[0]), logits

    def forward(copies: Any) -> Any:
        import torch

        index = chosen[0]
        tokens, k = index.shape
        inputs = copies.view(k, tokens, -1).transpose(0, 1)
        sums = _dispatch(experts, inputs, index, torch.ones_like(index, dtype=copies.dtype))
        return torch.cat([sums, sums.new_zeros((tokens * (k - 1), sums.shape[-1]))])  # the block adds up the copies

    router.module.register_forward_hook(narrow)
    experts.forward = forward


def _gated(activation: Callable[[Any], Any], inner: Any) -> Any:
    gate, up = inner.chunk(2, dim=-1)
    return activation(gate) * up


def run_experts(module: Any, x: Any, index: Any, weight: Any, use: Any = None) -> ExpertsResult:
    """Outputs for `x` [T, H] routed to `index` [T, k] with `weight` [T, k]; all work is grouped by expert.

    `x` may be [T, k, H]: an input of its own for each chosen expert. `use` (bool [T] or None for all) says which tokens
    enter `vectors`.
    """
    import torch

    expert_sorted, order = torch.sort(index.reshape(-1), stable=True)
    token = order // index.shape[-1]
    source, inputs = (token, x) if x.dim() == 2 else (order, x.flatten(0, 1))
    counts = torch.bincount(expert_sorted, minlength=module.num_experts).tolist()
    pair_weight = weight.reshape(-1)[order]
    first = "gate_up_proj" if module.has_gate else "up_proj"
    norm = torch.empty(len(order), dtype=torch.float32, device=x.device)
    vectors = torch.zeros(module.num_experts, x.shape[-1], dtype=torch.float64, device=x.device)
    # fp32 accumulation in expert order: deterministic, and never less exact than the model's own type.
    output = torch.zeros((x.shape[0], x.shape[-1]), dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        rows = slice(start, start + count)
        start += count
        inner = _linear(module, first, inputs[source[rows]], expert)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        out = _linear(module, "down_proj", inner, expert)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        length = torch.linalg.vector_norm(out, dim=-1, dtype=torch.float32)
        norm[rows] = length
        good = torch.isfinite(length)
        if use is not None:
            good &= use[token[rows]]
        # On a GPU asking for all() would wait for the device; there the rows are always selected.
        measured = out if out.device.type == "cpu" and bool(good.all()) else torch.where(good[:, None], out, 0)
        vectors[expert] = measured.sum(0, dtype=torch.float64)
        output.index_add_(0, token[rows], (out * pair_weight[rows, None]).float())
    return ExpertsResult(output.to(x.dtype), order.cpu().numpy(), expert_sorted.cpu().numpy(), norm.cpu().numpy(),
                         vectors.cpu().numpy())  # fmt: skip


def _linear(module: Any, name: str, x: Any, expert: int) -> Any:
    from torch.nn.functional import linear

    matrix = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return linear(x, matrix.T if module.is_transposed else matrix, bias)
