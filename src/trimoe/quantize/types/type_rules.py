"""Rules by which llama-quantize chooses the type of each tensor, transcribed so that sizes are known beforehand. Pure.

Follows src/llama-quant.cpp of the pinned release (llamacpp/release.toml) branch by branch: `llama_tensor_get_type` and
`llama_tensor_get_type_impl`, the mixes that file types stand for.
Invariants: tensors are visited in llama.cpp's order (by layer, then name), because some rules count earlier tensors.
Not covered: architectures with special rules (falcon, glm5-next, bailingmoe3), which are refused, and `--pure`,
`--prune-layers` and `--leave-output-tensor`, which trimoe never passes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimoe.errors import CheckpointError
from trimoe.model.gguf.format import NUMBERS, TYPES
from trimoe.quantize.types.fallback import fallback
from trimoe.quantize.types.tensor_types import (
    FILE_TYPES,
    PLAIN,
    Choice,
    ModelFacts,
    Request,
    Tensor,
    allows_quantization,
    category,
    in_order,
    layer_of,
)

OWN_RULES = ("falcon", "glm5-next", "bailingmoe3")
_IQ2 = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")


def choose_types(tensors: Sequence[Tensor], facts: ModelFacts, request: Request) -> list[Choice]:
    """The type of every tensor of the output file, in the order of the file. Raises `CheckpointError`."""
    if facts.architecture in OWN_RULES:
        raise CheckpointError(
            f"llama.cpp has special quantization rules for {facts.architecture}, which trimoe does not know",
            expected="another architecture",
            actual=facts.architecture,
            remedy="quantize this model with llama-quantize directly",
        )
    ordered = in_order(tensors)
    rules = _Rules(facts, request, tied=all(t.name != "output.weight" for t in ordered))
    rules.attn_v_total = sum(category(t.name) in ("attn_v", "attn_qkv", "attn_kv_b") for t in ordered)
    return [rules.choose(tensor) for tensor in ordered]


def _without_fallback(tensor: Tensor, kind: str) -> Choice:
    """--token-embedding-type and --output-tensor-type have no fallback: rows that do not fit stop llama-quantize."""
    if tensor.row % (block := TYPES[NUMBERS[kind]][1]):
        raise CheckpointError(
            f"{tensor.name} cannot be quantized to {kind}",
            expected=f"rows of a multiple of {block}",
            actual=f"rows of {tensor.row}",
            remedy="choose a type with smaller blocks",
        )
    return Choice(tensor, kind, kind)


@dataclass
class _Rules:
    """The state that llama.cpp keeps while it visits the tensors."""

    facts: ModelFacts
    request: Request
    tied: bool
    attn_v_total: int = 0
    attn_v_seen: int = 0
    ffn_down_seen: int = 0
    ffn_gate_seen: int = 0
    ffn_up_seen: int = 0
    patterns: list[re.Pattern[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # llama-quantize lower-cases patterns; std::regex_search (ECMAScript) agrees with re.search here.
        self.patterns = [re.compile(pattern.lower()) for pattern, _ in self.request.overrides]

    def choose(self, tensor: Tensor) -> Choice:
        """llama_tensor_get_type."""
        if not allows_quantization(tensor):
            return Choice(tensor, tensor.dtype, tensor.dtype, quantizable=False)
        kind, request = category(tensor.name), self.request
        number = next((i for i, p in enumerate(self.patterns) if p.search(tensor.name)), None)
        if request.token_embedding and kind == "token_embd":
            if not (tensor.name == "per_layer_token_embd.weight" and number is not None):
                return _without_fallback(tensor, request.token_embedding)
        elif request.output and kind == "output":
            return _without_fallback(tensor, request.output)
        wanted = FILE_TYPES[request.file_type]
        if wanted in PLAIN:
            return Choice(tensor, wanted, wanted)
        wanted = self.standard(tensor, kind, wanted) if number is None else request.overrides[number][1]
        return Choice(tensor, fallback(wanted, tensor.row), wanted, number)

    def more_bits(self, i: int, n: int) -> bool:
        """use_more_bits: the first and the last eighth of the layers, and every third one between."""
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2

    def place(self, tensor: Tensor, seen: int) -> tuple[int, int]:
        """(layer, layers): from the name in a Mixture-of-Experts model, by counting in others."""
        if self.facts.experts <= 1:
            return seen, self.facts.layers
        layer = layer_of(tensor.name)
        if not 0 <= layer < self.facts.layers:
            raise CheckpointError(
                f"tensor {tensor.name} does not belong to a layer",
                expected=f"0..{self.facts.layers - 1}",
                actual=str(layer),
                remedy="convert or download the model again",
            )
        return layer, self.facts.layers

    def standard(self, tensor: Tensor, kind: str, default: str) -> str:
        """llama_tensor_get_type_impl: the mix that a file type stands for."""
        ftype = self.request.file_type
        if kind == "output" or (self.tied and kind == "token_embd"):
            return self.output(tensor, default)
        if ftype == "MXFP4_MOE":
            return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[-3] > 1 else "Q8_0"
        if kind == "token_embd":
            return _TOKEN_EMBD.get(ftype, default)
        if ftype in _IQ2:
            return self.very_low(kind, default)
        if kind in ("attn_v", "attn_qkv", "attn_kv_b"):
            return self.attn_v(default)
        if kind == "attn_k" and self.facts.experts == 8:
            return "Q8_0"
        if kind in ("attn_k", "attn_q"):
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(ftype, default)
        if kind == "ffn_down":
            return self.ffn_down(tensor, default)
        if kind == "attn_output":
            if self.facts.experts == 8:
                return "Q5_K" if ftype in _EIGHT_EXPERTS_OUTPUT else default
            return _ATTN_OUTPUT.get(ftype, default)
        if kind in ("ffn_gate", "ffn_up"):
            seen = self.ffn_gate_seen if kind == "ffn_gate" else self.ffn_up_seen
            i, n = self.place(tensor, seen)
            self.ffn_gate_seen += kind == "ffn_gate"
            self.ffn_up_seen += kind == "ffn_up"
            return "IQ3_XXS" if ftype == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else default
        return default

    def output(self, tensor: Tensor, default: str) -> str:
        """The output matrix and tied embeddings."""
        if self.request.output:
            return self.request.output
        if self.request.file_type == "MXFP4_MOE" or tensor.row % TYPES[NUMBERS[default]][1]:
            return "Q8_0"
        if self.request.file_type in (*_IQ2, "IQ3_XXS"):
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"

    def very_low(self, kind: str, default: str) -> str:
        """File types of about two bits and less."""
        ftype, better = self.request.file_type, self.request.file_type in ("IQ2_S", "IQ2_M")
        if kind in ("attn_v", "attn_qkv", "attn_kv_b"):
            self.attn_v_seen += 1
            if self.facts.heads_per_kv >= 4 or self.facts.experts >= 4:
                return "Q4_K"
            return "IQ3_S" if better else "Q2_K"
        if kind == "attn_k" and self.facts.experts == 8:
            return "Q4_K"
        if kind == "ffn_down":
            # Counted, not read from the name: with two down projections per layer this reaches half the depth.
            self.ffn_down_seen += 1
            if self.ffn_down_seen - 1 < self.facts.layers // 8:
                return "IQ3_S" if better else "Q2_K"
        if kind == "attn_output":
            if self.facts.experts == 8:
                return "Q5_K"
            return "IQ2_XXS" if ftype in ("IQ1_S", "IQ1_M") else "IQ3_S" if better else default
        return default

    def attn_v(self, default: str) -> str:
        """Value projections, including fused ones."""
        ftype, grouped, i = self.request.file_type, self.facts.heads_per_kv >= 4, self.attn_v_seen
        self.attn_v_seen += 1
        if self.facts.experts == 8:
            return "Q8_0"
        if ftype == "Q2_K":
            return "Q4_K" if grouped else "Q3_K"
        if ftype == "IQ3_XXS":
            return "Q4_K" if grouped else "IQ3_XXS" if self.request.imatrix else "IQ3_S"
        if ftype == "IQ3_M" or (ftype in ("Q2_K_S", "IQ3_XS", "IQ3_S") and grouped):
            return "Q4_K"
        if ftype == "Q3_K_M":
            return "Q5_K" if i < 2 else "Q4_K"
        if ftype == "Q3_K_L" or (ftype in ("IQ4_NL", "IQ4_XS") and grouped) or (ftype == "Q4_K_S" and i < 4):
            return "Q5_K"
        if ftype in ("Q4_K_M", "Q5_K_M") and self.more_bits(i, self.attn_v_total):
            return "Q6_K"
        return default

    def ffn_down(self, tensor: Tensor, default: str) -> str:
        """Down projections of experts and of dense FFNs."""
        ftype, imatrix = self.request.file_type, self.request.imatrix
        i, n = self.place(tensor, self.ffn_down_seen)
        self.ffn_down_seen += 1
        first = i < n // 8
        if ftype == "Q2_K":
            return "Q3_K"
        if ftype == "Q2_K_S":
            return "Q4_K" if first else default
        if ftype == "IQ3_XXS" and not imatrix:
            return "Q4_K" if first else "Q3_K"
        if ftype == "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K"
        if ftype == "IQ3_M" and (first or (self.facts.experts == 8 and self.more_bits(i, n))):
            return "Q4_K"
        if ftype == "Q3_K_L":
            return "Q5_K"
        if ftype in ("Q4_K_M", "Q5_K_M") and self.more_bits(i, n):
            return "Q6_K"
        if first and ftype in ("IQ4_NL", "IQ4_XS") and not imatrix:
            return "Q5_K"
        if first and ftype == "Q4_K_S":
            return "Q5_K"
        if first and imatrix and ftype in ("Q4_0", "Q5_0"):
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[ftype]
        return default


_TOKEN_EMBD = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}
_EIGHT_EXPERTS_OUTPUT = (
    "Q2_K",
    "IQ3_XS",
    "IQ3_XXS",
    "Q3_K_S",
    "Q3_K_M",
    "IQ4_NL",
    "Q4_K_S",
    "Q4_K_M",
    "IQ3_S",
    "IQ3_M",
    "IQ4_XS",
)
_ATTN_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
