"""Memory that serving a quantized file takes: weights, key-value cache, compute buffer. Pure.

Exact: key-value caches (cells as llama.cpp's llama-kv-cache-iswa.cpp allocates them). Estimate: compute buffers.
"""

from dataclasses import dataclass

from trimoe.errors import UsageError
from trimoe.model.gguf.format import NUMBERS, TYPES
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.sizes import Size

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
        """All parts together."""
        return self.weights + self.kv_cache + self.compute + self.vision


@dataclass(frozen=True)
class Serving:
    """Serving settings: `context` tokens for each of `parallel` conversations."""

    context: int
    parallel: int = 1
    kv_type: str = "F16"
    vision: int = 0
    """Bytes of a vision tower that is also loaded."""

    def __post_init__(self) -> None:
        """Refuse cache types that llama.cpp's attention does not support."""
        if self.kv_type not in KV_TYPES:
            raise UsageError(
                f"--kv {self.kv_type} is not a cache type of llama.cpp",
                expected=", ".join(KV_TYPES),
                actual=self.kv_type,
                remedy="choose one of these",
            )


def kv_cache_bytes(blueprint: Blueprint, serving: Serving) -> int:
    """Bytes of the keys and values of all layers; a sliding layer holds its window and one batch, not the context.

    With attention_k_eq_v llama.cpp still stores both, because values are normalised separately.
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


def memory_of(blueprint: Blueprint, size: Size, serving: Serving) -> Memory:
    """The memory for serving a file of this size."""
    return Memory(size.data, kv_cache_bytes(blueprint, serving), compute_bytes(blueprint, serving), serving.vision)


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
