"""Candidates for a memory budget: combinations of experts kept and tier, ordered by expected quality. Pure.

File sizes are exact. The order is an expectation, not a measurement: see `cost`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from trimoe.model.gguf.format import nbytes_of
from trimoe.quantize.ladder.dynamic import Ranking, normal, overrides_of
from trimoe.quantize.plan.memory import Memory, Serving, memory_of
from trimoe.quantize.types.blueprint import Blueprint, is_expert_tensor
from trimoe.quantize.types.sizes import Size, predict
from trimoe.quantize.types.tiers import Tier


def size_of(
    blueprint: Blueprint, tier: Tier, *, imatrix: bool = True, ranking: Ranking | None = None, extra: int | None = None
) -> Size:
    """The predicted file of a tier. Without `ranking`, a ContribDynamic tier ranks the layers in their order.

    The ranking changes the size only where layers differ in shape. `extra` are bytes of metadata about the imatrix.
    """
    overrides: tuple[tuple[str, str], ...] = ()
    if tier.dynamic is not None:
        assumed = ranking or Ranking(tuple(range(blueprint.facts.layers)), "assumed", "")
        overrides = normal(overrides_of(tier, assumed, [t.name for t in blueprint.tensors]))
    request = tier.request(overrides, imatrix=imatrix)
    return predict(blueprint.tensors, blueprint.facts, blueprint.metadata, request, extra)


def expert_bits(size: Size, experts: int) -> float:
    """Bits per weight of the expert matrices, where most of the weights are."""
    routed = [c for c in size.choices if is_expert_tensor(c.tensor, experts) and c.quantizable]
    weights = sum(prod(c.tensor.shape) for c in routed)
    return 8 * sum(nbytes_of(c.dtype, c.tensor.shape) for c in routed) / weights if weights else size.bits_per_weight


def cost(bits: float, dropped: float) -> float:
    """Expected loss of quality, in the order of nats of KL divergence: 10 x 4^-bits + (share of experts dropped)^2.

    A rule of thumb for ranking, not a prediction. Quantization noise falls by a factor of 4 with each bit (the first
    term gives about 0.013 at 4.8 bits, 0.08 at 3.5, 0.27 at 2.6, as commonly measured). Experts dropped by
    contribution cost little at first, and increasingly more later. Measure with `trimoe kld` and `trimoe eval`.
    """
    return float(10 * 4.0**-bits + dropped**2)


@dataclass(frozen=True)
class Candidate:
    """One possible file. `rival` is the unpruned model at its largest tier of at most the same size."""

    keep: int
    tier: str
    size: Size
    memory: Memory
    bits: float
    cost: float
    reason: str
    warned: bool = False
    """The tier was measured to be bad (tiers.toml), so it ranks after the others."""
    rival: "Candidate | None" = None


def candidates(blueprint: Blueprint, tiers: Sequence[Tier], keeps: Iterable[int], serving: Serving) -> list[Candidate]:
    """Every combination, best first; pruned ones have rivals."""
    experts = blueprint.facts.experts
    whole = [_candidate(blueprint, experts, tier, experts, serving) for tier in tiers]
    found = list(whole)
    for keep in sorted(set(keeps) - {experts}, reverse=True):
        smaller = blueprint.with_experts(keep)
        for tier in tiers:
            one = _candidate(smaller, keep, tier, experts, serving)
            rivals = [w for w in whole if w.size.file_bytes <= one.size.file_bytes]
            rival = max(rivals, key=lambda w: w.size.file_bytes, default=None)
            found.append(replace(one, rival=rival, reason=_reason(one, rival, experts, tier)))
    return sorted(found, key=lambda c: (c.warned, c.cost, c.size.file_bytes, c.tier))


def fitting(found: Sequence[Candidate], budget: int) -> list[Candidate]:
    """The candidates whose weights, caches and buffers fit into `budget` bytes, in the same order."""
    return [candidate for candidate in found if candidate.memory.total <= budget]


def default_keeps(experts: int, top_k: int) -> list[int]:
    """Expert counts worth listing: all, and steps of an eighth down to a half, never below twice the routed ones."""
    return [k for k in (ceil(experts * part / 16) for part in (16, 14, 12, 10, 8)) if k >= 2 * top_k or k == experts]


def _candidate(blueprint: Blueprint, keep: int, tier: Tier, experts: int, serving: Serving) -> Candidate:
    size = size_of(blueprint, tier)
    bits = expert_bits(size, keep)
    value = cost(bits, 1 - keep / experts)
    one = Candidate(
        keep, tier.name, size, memory_of(blueprint, size, serving), bits, value, "", tier.warning is not None
    )
    return replace(one, reason=_reason(one, None, experts, tier))


def _reason(one: Candidate, rival: Candidate | None, experts: int, tier: Tier) -> str:
    text = f"{one.bits:.2f} bits per expert weight"
    if one.keep < experts:
        text += f", {experts - one.keep} of {experts} experts dropped"
    if tier.warning:
        text += f"; {tier.warning}"
    elif one.bits < 3.2:
        text += "; so few bits often break a model: evaluate before use"
    if rival is not None:
        better = "better" if (one.warned, one.cost) < (rival.warned, rival.cost) else "worse"
        text += f"; expected {better} than all {experts} experts as {rival.tier} ({rival.bits:.2f} bits)"
    return text
