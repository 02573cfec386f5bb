"""The forward pass of a layer's experts, for every family that uses transformers' experts interface.

Values equal those of transformers' own functions up to rounding; the caller sees every expert output as it is computed.
Layout differences (biases, transposed weights, gate, post norm) come from the flags that transformers sets on every
experts module, never from class names. `adapt` converts experts outside that interface, which take tokens already
scaled by their weight, all tokens for every expert.
Invariants: the order of all sums is fixed, so the same input gives the same bits; a row's values do not depend on how
many other rows its expert got (small groups are padded, because kernels for a few rows round differently).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimoe.calibrate.forward.batching import padded_length

IMPLEMENTATION = "trimoe_recording"
"""Name under which the function is registered in transformers."""
ROWS_PER_THREAD = 8
"""Fewest rows of a product on a CPU. Measured with MKL and AVX-512: a thread with 1 to 3 rows uses another kernel than
one with 4 or more, and two threads divide up to 11 rows so that one of them may get so few."""
MOST_FILLED = 64
"""Most rows to which a small group is padded, for any number of threads."""


@dataclass(frozen=True)
class Routing:
    """P routed pairs (token, expert) sorted by expert, then by token; all on the layer's device."""

    order: Any
    """int [P] index of the pair in the flattened [tokens, k]."""
    token: Any
    """int [P]"""
    expert: Any
    """int [P]"""
    counts: list[int]
    """Pairs of each expert."""


@dataclass(frozen=True)
class Seen:
    """Outputs of experts `first` to `last` (exclusive); `rows` are their pairs among the sorted ones."""

    first: int
    last: int
    rows: slice
    inner: Any
    """[rows, I] after gate and activation."""
    out: Any
    """[rows, H] before weighting."""


def register() -> None:
    """Register the recording function with transformers (idempotent)."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _dispatch)


def _dispatch(module: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    recorder = getattr(module, "trimoe_recorder", None)
    if recorder is None:
        return run_experts(module, hidden_states, top_k_weights, route(top_k_index, module.num_experts))
    return recorder.forward(module, hidden_states, top_k_index, top_k_weights)


def adapt(experts: Any, router: Any, transposed: bool) -> None:
    """Adapt experts that take scaled tokens [E x T, H], all tokens for every expert, to transformers' interface.

    Their block repeats the tokens once per column of the router's scores, scales them, and sums the experts' outputs
    over the copies. Here the router's scores are reduced to the k chosen columns, so that the block makes k copies
    instead of E; the outputs left out would be zero.
    """
    experts.has_gate, experts.has_bias, experts.has_post_expert_norm = True, False, False
    experts.is_transposed, experts.is_concatenated = transposed, True
    experts._apply_gate = lambda inner: _gated(experts.act_fn, inner)
    chosen: list[Any] = []

    def narrow(module: Any, args: Any, output: Any) -> Any:
        scores, logits = output
        chosen[:] = [logits.topk(module.top_k, dim=-1).indices]
        return scores.gather(1, chosen[0]), logits

    def forward(copies: Any) -> Any:
        import torch

        index = chosen[0]
        tokens, k = index.shape
        inputs = copies.view(k, tokens, -1).transpose(0, 1)
        sums = _dispatch(experts, inputs, index, torch.ones_like(index, dtype=copies.dtype))
        return torch.cat([sums, sums.new_zeros((tokens * (k - 1), sums.shape[-1]))])  # the block sums over the copies

    router.register_forward_hook(narrow)
    experts.forward = forward


def _gated(activation: Callable[[Any], Any], inner: Any) -> Any:
    gate, up = inner.chunk(2, dim=-1)
    return activation(gate) * up


def route(index: Any, experts: int) -> Routing:
    """Sort the choices `index` [tokens, k]. On a GPU, this is the only point where the host waits for the device."""
    import torch

    expert, order = torch.sort(index.reshape(-1), stable=True)
    counts = torch.bincount(expert, minlength=experts).tolist()
    return Routing(order, order // index.shape[-1], expert, counts)


def one_expert(module: Any, x: Any, expert: int) -> Any:
    """Outputs [T, H] of one expert for every row of `x` [T, H], before weighting."""
    out = _linear(module, "down_proj", _activated(module, _linear(module, _first(module), x, expert)), expert)
    return module.post_expert_norm(out) if module.has_post_expert_norm else out


def run_experts(module: Any, x: Any, weight: Any, routing: Routing, see: Callable[[Seen], None] | None = None) -> Any:
    """Outputs [T, H] for `x` [T, H] and the router's `weight` [T, k].

    `x` may be [T, k, H]: an input of its own for each chosen expert.
    On a CPU, experts are computed one after the other, which keeps the working set small; on an accelerator, in one
    grouped product, because thousands of small kernels would leave it idle.
    """
    return (_one_by_one if x.device.type == "cpu" else _grouped)(module, x, weight, routing, see)


def _one_by_one(module: Any, x: Any, weight: Any, routing: Routing, see: Callable[[Seen], None] | None) -> Any:
    import torch

    pair_weight = weight.reshape(-1)[routing.order]
    # fp32 accumulation in expert order: deterministic, and never less exact than the model's own type.
    output = torch.zeros((x.shape[0], x.shape[-1]), dtype=torch.float32, device=x.device)
    fewest = min(MOST_FILLED, ROWS_PER_THREAD * torch.get_num_threads())
    start = 0
    for expert, count in enumerate(routing.counts):
        if not count:
            continue
        rows = slice(start, start + count)
        start += count
        entering = _entering(x, routing, rows)
        filled = max(count, fewest)
        if x.dtype != torch.float32:
            # oneDNN compiles and caches a kernel of 0.7 MB for every number of rows: round them to few values.
            filled = padded_length(filled)
        if count < filled:
            entering = torch.cat([entering, entering.new_zeros(filled - count, entering.shape[1])])
        inner = _activated(module, _linear(module, _first(module), entering, expert))
        out = _linear(module, "down_proj", inner, expert)[:count]
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        if see is not None:
            see(Seen(expert, expert + 1, rows, inner[:count], out))
        output.index_add_(0, routing.token[rows], (out * pair_weight[rows, None]).float())
    return output.to(x.dtype)


def _grouped(module: Any, x: Any, weight: Any, routing: Routing, see: Callable[[Seen], None] | None) -> Any:
    import torch
    from transformers.integrations.moe import _grouped_linear

    ends = torch.tensor(routing.counts, device=x.device).cumsum(0).to(torch.int32)

    def product(name: str, entering: Any) -> Any:
        bias = getattr(module, f"{name}_bias")[routing.expert] if module.has_bias else None
        return _grouped_linear(entering, getattr(module, name), ends, bias, module.is_transposed)

    inner = _activated(module, product(_first(module), _entering(x, routing, slice(None))))
    out = product("down_proj", inner)
    if module.has_post_expert_norm:
        out = module.post_expert_norm(out)
    if see is not None:
        see(Seen(0, len(routing.counts), slice(0, len(routing.order)), inner, out))
    # Back to token order, then summed: scattering with atomic additions would give other bits in each run.
    weighted = out * weight.reshape(-1)[routing.order, None]
    back = torch.empty_like(weighted)
    back[routing.order] = weighted
    return back.reshape(*weight.shape, -1).sum(1, dtype=torch.float32).to(x.dtype)


def _entering(x: Any, routing: Routing, rows: slice) -> Any:
    """What enters the experts in these pairs."""
    return x[routing.token[rows]] if x.dim() == 2 else x.flatten(0, 1)[routing.order[rows]]


def _first(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _activated(module: Any, inner: Any) -> Any:
    return module._apply_gate(inner) if module.has_gate else module.act_fn(inner)


def _linear(module: Any, name: str, x: Any, expert: int) -> Any:
    from torch.nn.functional import linear

    matrix = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return linear(x, matrix.T if module.is_transposed else matrix, bias)
