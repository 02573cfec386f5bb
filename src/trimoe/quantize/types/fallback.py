"""The type that a tensor gets in llama-quantize if its row length does not fit the wanted type. Pure.

Follows `tensor_type_fallback` in src/llama-quant.cpp of the pinned release (llamacpp/release.toml).
"""

from trimoe.errors import CheckpointError
from trimoe.model.gguf.format import NUMBERS, TYPES

_FALLBACK: dict[str, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def fallback(kind: str, row: int) -> str:
    """The type for rows of this length: `kind`, or its fallback. Raises `CheckpointError` where llama.cpp has none."""
    block = TYPES[NUMBERS[kind]][1]
    if row % block == 0:
        return kind
    if kind not in _FALLBACK and block > 32:
        raise CheckpointError(
            f"rows of {row} values cannot be quantized to {kind}",
            expected=f"a multiple of {block}",
            actual=str(row),
            remedy="choose another type; this one has no fallback",
        )
    other = _FALLBACK.get(kind, kind)
    return "F16" if row % TYPES[NUMBERS[other]][1] else other
