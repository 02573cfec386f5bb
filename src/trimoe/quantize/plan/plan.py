"""What a model will weigh before it is made, what it needs in memory, and which (experts x tier) fit a budget. Pure.

Exact: file sizes (sizes.py) and key-value caches (cells as llama.cpp's llama-kv-cache-iswa.cpp allocates them).
Estimates: compute buffers, and the order of the candidates, which is an expectation and no measurement: see `cost`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from trimoe.errors import UsageError
from trimoe.model.gguf.format import NUMBERS, TYPES, nbytes_of
from trimoe.quantize.ladder.dynamic import Ranking, normal, overrides_of
from trimoe.quantize.types.blueprint import Blueprint, is_expert_tensor
from trimoe.quantize.types.sizes import Size, predict
from trimoe.quantize.types.tiers import Tier

KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
UBATCH = 512  # tokens that llama.cpp computes at a time by default
_PAD = 256  # llama.cpp rounds contexts and sliding caches up to this many cells


@dataclass(frozen=True)
class Memory:
    """Bytes in memory while serving. `compute` is an estimate, the rest is exact."""

    weights: int
    kv_cache: int
    compute: int
    vision: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute + self.vision


@dataclass(frozen=True)
class Serving:
    """How the model is served: `context` tokens for each of `parallel` conversations."""

    context: int
    parallel: int = 1
    kv_type: str = "F16"
    vision: int = 0
    """Bytes of a vision tower that is loaded too."""

    def __post_init__(self) -> None:
        """Refuse cache types that llama.cpp has no attention for."""
        if self.kv_type not in KV_TYPES:
            raise UsageError(f"--kv {self.kv_type} is no cache type of llama.cpp", expected=", ".join(KV_TYPES))


def kv_cache_bytes(blueprint: Blueprint, serving: Serving) -> int:
    """Keys and values of all layers; a sliding layer holds its window and one batch, not the whole context.

    With attention_k_eq_v llama.cpp still stores both: values are normalised apart from keys.
    """
    full = -(-serving.context // _PAD) * _PAD
    total = 0
    for layer in blueprint.attention:
        window = full if layer.window is None else layer.window + UBATCH
        cells = full if layer.window is None else -(-min(full, window) // _PAD) * _PAD
        for size in (layer.key_size, layer.value_size):
            total += _row_bytes(serving.kv_type, layer.kv_heads * size) * cells
    return total * serving.parallel


def compute_bytes(blueprint: Blueprint, serving: Serving) -> int:
    """Estimate of llama.cpp's compute buffer (flash attention on), for a batch of `UBATCH` tokens.

    The graph allocator reuses memory, so it is the larger of the logits and one layer's expert activations, in float32,
    plus the residual stream and an attention mask in 16 bits. Measured on the bundled model: within 10 %.
    """
    cells = -(-serving.context // _PAD) * _PAD * serving.parallel
    widest = max(blueprint.vocabulary, 2 * blueprint.top_k * blueprint.hidden)
    return 4 * UBATCH * (widest + blueprint.hidden) + 2 * UBATCH * cells


def memory(blueprint: Blueprint, size: Size, serving: Serving) -> Memory:
    """What serving this file takes."""
    return Memory(size.data, kv_cache_bytes(blueprint, serving), compute_bytes(blueprint, serving), serving.vision)


def size_of(
    blueprint: Blueprint, tier: Tier, *, imatrix: bool = True, ranking: Ranking | None = None, extra: int | None = None
) -> Size:
    """The file of a tier. Without a ranking a ContribDynamic tier's size is that of layers ranked in their order.

    Which layers are top changes the size only where layers differ in shape; `ranking` makes it exact.
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
    weights = sum(_values(c.tensor.shape) for c in routed)
    return 8 * sum(nbytes_of(c.dtype, c.tensor.shape) for c in routed) / weights if weights else size.bits_per_weight


def cost(bits: float, dropped: float) -> float:
    """Expected loss of quality, in the order of nats of KL divergence: 10 x 4^-bits + (share of experts dropped)^2.

    A rule of thumb for ranking, not a prediction: quantization noise falls by 4 with each bit (the first term gives
    about 0.013 at 4.8 bits, 0.08 at 3.5, 0.27 at 2.6, as commonly measured), and experts that are dropped by their
    contribution cost little at first and more and more later. Measure with `trimoe kld` and `trimoe eval`.
    """
    return float(10 * 4.0**-bits + dropped**2)


@dataclass(frozen=True)
class Candidate:
    """One file that could be made. `rival` is the unpruned model's largest tier of at most the same size."""

    keep: int
    tier: str
    size: Size
    memory: Memory
    bits: float
    cost: float
    reason: str
    warned: bool = False
    """The tier was measured to be bad (tiers.toml): ranked behind the others."""
    rival: "Candidate | None" = None


def candidates(blueprint: Blueprint, tiers: Sequence[Tier], keeps: Iterable[int], serving: Serving) -> list[Candidate]:
    """Every combination, best first, pruned ones with their rivals."""
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
    """Those whose weights, caches and buffers fit, in the same order."""
    return [candidate for candidate in found if candidate.memory.total <= budget]


def default_keeps(experts: int, top_k: int) -> list[int]:
    """Expert counts worth listing: all, and steps of an eighth down to a half, never below twice the routed ones."""
    return [k for k in (ceil(experts * part / 16) for part in (16, 14, 12, 10, 8)) if k >= 2 * top_k or k == experts]


def _candidate(blueprint: Blueprint, keep: int, tier: Tier, experts: int, serving: Serving) -> Candidate:
    size = size_of(blueprint, tier)
    bits = expert_bits(size, keep)
    value = cost(bits, 1 - keep / experts)
    one = Candidate(keep, tier.name, size, memory(blueprint, size, serving), bits, value, "", tier.warning is not None)
    return replace(one, reason=_reason(one, None, experts, tier))


def _reason(one: Candidate, rival: Candidate | None, experts: int, tier: Tier) -> str:
    text = f"{one.bits:.2f} bits per expert weight"
    if one.keep < experts:
        text += f", {experts - one.keep} of {experts} experts dropped"
    if tier.warning:
        text += f"; {tier.warning}"
    elif one.bits < 3.2:
        text += "; so few bits often break a model: test before use"
    if rival is not None:
        better = "better" if (one.warned, one.cost) < (rival.warned, rival.cost) else "worse"
        text += f"; expected {better} than all {experts} experts as {rival.tier} ({rival.bits:.2f} bits)"
    return text


def _row_bytes(kind: str, values: int) -> int:
    _, block, size = TYPES[NUMBERS[kind]]
    if values % block:
        raise UsageError(
            f"--kv {kind.lower()} does not fit this model",
            expected=f"rows of a multiple of {block}",
            actual=str(values),
            remedy="use f16",
        )
    return values // block * size


def _values(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
