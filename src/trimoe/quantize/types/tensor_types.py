"""Types of GGUF tensors in llama-quantize: valid requests, and which tensors are quantized or need an imatrix.

Follows src/llama-quant.cpp of the pinned release (llamacpp/release.toml): `tensor_get_category`,
`tensor_allows_quantization`, `tensor_requires_imatrix`. Pure. type_rules.py chooses the type of each tensor,
fallback.py replaces types that do not fit its rows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trimoe.errors import BadInput
from trimoe.model.gguf.format import NUMBERS
from trimoe.model.safetensors import TensorInfo

# Name of a file type of llama-quantize -> type of most of its tensors (llama_ftype_get_default_type).
FILE_TYPES: dict[str, str] = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q5_0": "Q5_0",
    "Q5_1": "Q5_1",
    "MXFP4_MOE": "MXFP4",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K",
    "IQ1_S": "IQ1_S",
    "IQ1_M": "IQ1_M",
    "IQ2_XXS": "IQ2_XXS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS",
    "IQ3_XS": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "TQ1_0": "TQ1_0",
    "TQ2_0": "TQ2_0",
    "Q1_0": "Q1_0",
    "Q2_0": "Q2_0",
}
PLAIN = ("F32", "F16", "BF16")
# Types a tensor can be quantized to. Q8_1 and Q8_K exist only while computing; NVFP4 is not made by llama-quantize.
TARGETS = tuple(name for name in NUMBERS if name not in ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "NVFP4"))

NEEDS_IMATRIX = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# A tensor whose name contains one of these keeps its type.
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Tensor:
    """Name, stored type and row-major shape of a tensor: all that the rules depend on."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row(self) -> int:
        """Values per row (ggml's ne[0])."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model that the rules depend on. `heads_per_kv` is n_gqa of layer 0, as in llama.cpp."""

    architecture: str
    layers: int
    experts: int
    heads_per_kv: int


@dataclass(frozen=True)
class Request:
    """A request to llama-quantize. `overrides` are --tensor-type pairs (regex, type); the first match wins."""

    file_type: str
    overrides: tuple[tuple[str, str], ...] = ()
    token_embedding: str | None = None
    output: str | None = None
    imatrix: bool = False

    def __post_init__(self) -> None:
        """Refuse what llama-quantize would refuse or misinterpret."""
        if self.file_type not in FILE_TYPES:
            raise BadInput(
                f"file type {self.file_type} is unknown to this llama.cpp",
                expected=", ".join(FILE_TYPES),
                actual=self.file_type,
                remedy="choose one of these",
            )
        for pattern, kind in (*self.overrides, ("token_embd", self.token_embedding), ("output", self.output)):
            if kind is not None and kind not in TARGETS:
                mix = kind in FILE_TYPES
                raise BadInput(
                    f"{kind} is not a type that a tensor can have ({pattern})",
                    expected=", ".join(TARGETS),
                    actual=f"{kind} is a file type, a mix of several" if mix else kind,
                    remedy=f"use {FILE_TYPES[kind]}" if mix else "choose one of these",
                )


@dataclass(frozen=True)
class Choice:
    """The type of a tensor. `wanted` is the type before the fallback for rows that are not whole blocks."""

    tensor: Tensor
    dtype: str
    wanted: str
    override: int | None = None
    """Number of the override that applied, if one did."""
    quantizable: bool = True

    @property
    def fell_back(self) -> bool:
        """Whether the row length did not allow the wanted type."""
        return self.dtype != self.wanted


def tensors_of(index: Mapping[str, TensorInfo]) -> list[Tensor]:
    """The tensors of an opened file."""
    return [Tensor(info.name, info.dtype, info.shape) for info in index.values()]


def in_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """llama.cpp's order: tensors outside layers first, then layer by layer, by name (bytewise)."""
    return sorted(tensors, key=lambda t: (layer_of(t.name), t.name.encode()))


def requires_imatrix(choice: Choice, file_type: str) -> bool:
    """Whether llama-quantize stops without an imatrix entry for this tensor."""
    if not choice.quantizable or choice.tensor.name in (*_EMBEDDINGS, "output.weight"):
        return False
    return choice.dtype in NEEDS_IMATRIX or (choice.dtype == "Q2_K" and file_type == "Q2_K_S")


def category(name: str) -> str:
    """Coarse role of a tensor: the first of llama.cpp's name tests that matches."""
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "token_embd"
    for part in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "other")


def allows_quantization(tensor: Tensor) -> bool:
    """Whether llama-quantize quantizes the tensor at all: matrices named ...weight, except a list of small ones."""
    # ggml_n_dims ignores trailing axes of length 1; row-major shapes have them in front.
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    name = tensor.name
    if len(shape) < 2 or not name.endswith("weight") or name in ("position_embd.weight", "token_types.weight"):
        return False
    return not any(part in name for part in _KEPT)


def layer_of(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1
