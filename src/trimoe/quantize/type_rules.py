"""Which type llama-quantize gives to each tensor: a transcription of llama.cpp's rules, so that sizes are known before.

Follows src/llama-quant.cpp of the pinned release (llamacpp_release.toml) branch by branch: `tensor_get_category`,
`tensor_allows_quantization`, `llama_tensor_get_type_impl`, `tensor_type_fallback`, `tensor_requires_imatrix`. Pure.
Invariants: tensors are visited in llama.cpp's order (by layer, then name), because some rules count what came before.
Not covered: architectures with rules of their own (falcon, glm5-next, bailingmoe3) are refused, and
`--pure`, `--prune-layers` and `--leave-output-tensor`, which trimoe never passes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trimoe.errors import BadInput, CheckpointError
from trimoe.model.gguf import NUMBERS, TYPES
from trimoe.model.safetensors import TensorInfo

OWN_RULES = ("falcon", "glm5-next", "bailingmoe3")

# Name of a file type of llama-quantize -> type of most of its tensors (llama_ftype_get_default_type).
FILE_TYPES: dict[str, str] = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0",
    "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "MXFP4_MOE": "MXFP4",
    "Q2_K": "Q2_K", "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
    "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M", "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS", "IQ3_XS": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S", "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS", "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0", "Q1_0": "Q1_0", "Q2_0": "Q2_0",
}  # fmt: skip
PLAIN = ("F32", "F16", "BF16")
# Types a tensor can be quantized to. Q8_1 and Q8_K exist only while computing; NVFP4 is not made by llama-quantize.
TARGETS = tuple(name for name in NUMBERS if name not in ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "NVFP4"))

_FALLBACK: dict[str, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_NEEDS_IMATRIX = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
_IQ2 = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# A tensor whose name holds one of these keeps its type.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Tensor:
    """Name, stored type and row-major shape: all that decides about a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row(self) -> int:
        """Values per row (ggml's ne[0])."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask of a model. `heads_per_kv` is n_gqa of layer 0, as llama.cpp takes it."""

    architecture: str
    layers: int
    experts: int
    heads_per_kv: int


@dataclass(frozen=True)
class Request:
    """What is asked of llama-quantize. `overrides` are --tensor-type pairs (regex, type); the first match wins."""

    file_type: str
    overrides: tuple[tuple[str, str], ...] = ()
    token_embedding: str | None = None
    output: str | None = None
    imatrix: bool = False

    def __post_init__(self) -> None:
        """Refuse what llama-quantize would refuse, or worse, would take for something else."""
        if self.file_type not in FILE_TYPES:
            raise BadInput(f"file type {self.file_type} is unknown to this llama.cpp", expected=", ".join(FILE_TYPES),
                           actual=self.file_type, remedy="choose one of these")  # fmt: skip
        for pattern, kind in (*self.overrides, ("token_embd", self.token_embedding), ("output", self.output)):
            if kind is not None and kind not in TARGETS:
                mix = kind in FILE_TYPES
                raise BadInput(
                    f"{kind} is not a type that a tensor can have ({pattern})", expected=", ".join(TARGETS),
                    actual=f"{kind} is a file type, a mix of several" if mix else kind,
                    remedy=f"say {FILE_TYPES[kind]}" if mix else "choose one of these",
                )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The type a tensor gets. `wanted` is the type before the fallback for rows that are no whole blocks."""

    tensor: Tensor
    dtype: str
    wanted: str
    override: int | None = None
    """Number of the override that decided, if one did."""
    quantizable: bool = True

    @property
    def fell_back(self) -> bool:
        """Whether the rows did not allow the wanted type."""
        return self.dtype != self.wanted


def tensors_of(index: Mapping[str, TensorInfo]) -> list[Tensor]:
    """The tensors of an opened file."""
    return [Tensor(info.name, info.dtype, info.shape) for info in index.values()]


def in_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """llama.cpp's order: tensors outside of layers first, then layer by layer, each by name (bytewise)."""
    return sorted(tensors, key=lambda t: (_layer(t.name), t.name.encode()))


def choose_types(tensors: Sequence[Tensor], facts: ModelFacts, request: Request) -> list[Choice]:
    """The type of every tensor of the output file, in the order of the file. Raises `CheckpointError`."""
    if facts.architecture in OWN_RULES:
        raise CheckpointError(
            f"llama.cpp has quantization rules of its own for {facts.architecture}, which are not transcribed here",
            expected="another architecture", remedy="quantize this model with llama-quantize directly",
        )  # fmt: skip
    ordered = in_order(tensors)
    rules = _Rules(facts, request, tied=all(t.name != "output.weight" for t in ordered))
    rules.attn_v_total = sum(category(t.name) in ("attn_v", "attn_qkv", "attn_kv_b") for t in ordered)
    return [rules.choose(tensor) for tensor in ordered]


def requires_imatrix(choice: Choice, file_type: str) -> bool:
    """Whether llama-quantize stops without an imatrix entry for this tensor."""
    if not choice.quantizable or choice.tensor.name in (*_EMBEDDINGS, "output.weight"):
        return False
    return choice.dtype in _NEEDS_IMATRIX or (choice.dtype == "Q2_K" and file_type == "Q2_K_S")


def category(name: str) -> str:
    """Coarse role of a tensor, by the first of llama.cpp's tests that its name passes."""
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "token_embd"
    for part in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "other")


def allows_quantization(tensor: Tensor) -> bool:
    """Whether llama-quantize touches the tensor at all: matrices named ...weight, except a list of small ones."""
    # ggml_n_dims ignores trailing axes of length 1; row-major shapes have them in front.
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    name = tensor.name
    if len(shape) < 2 or not name.endswith("weight") or name in ("position_embd.weight", "token_types.weight"):
        return False
    return not any(part in name for part in _KEPT)


def fallback(kind: str, row: int) -> str:
    """The type that rows of this length can have instead. Raises `CheckpointError` where llama.cpp has none."""
    block = TYPES[NUMBERS[kind]][1]
    if row % block == 0:
        return kind
    if kind not in _FALLBACK and block > 32:
        raise CheckpointError(f"rows of {row} values cannot be quantized to {kind}", expected=f"a multiple of {block}",
                              actual=str(row), remedy="choose another type; this one has no fallback")  # fmt: skip
    other = _FALLBACK.get(kind, kind)
    return "F16" if row % TYPES[NUMBERS[other]][1] else other


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


@dataclass
class _Rules:
    """The state that llama.cpp keeps while it walks over the tensors."""

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
        # llama-quantize lower-cases patterns; std::regex_search (ECMAScript) agrees with re.search on what is used.
        self.patterns = [re.compile(pattern.lower()) for pattern, _ in self.request.overrides]

    def choose(self, tensor: Tensor) -> Choice:
        """llama_tensor_get_type."""
        if not allows_quantization(tensor):
            return Choice(tensor, tensor.dtype, tensor.dtype, quantizable=False)
        kind, request = category(tensor.name), self.request
        number = next((i for i, p in enumerate(self.patterns) if p.search(tensor.name)), None)
        if request.token_embedding and kind == "token_embd":
            if not (tensor.name == "per_layer_token_embd.weight" and number is not None):
                return Choice(tensor, request.token_embedding, request.token_embedding)
        elif request.output and kind == "output":
            return Choice(tensor, request.output, request.output)
        wanted = FILE_TYPES[request.file_type]
        if wanted in PLAIN:
            return Choice(tensor, wanted, wanted)
        wanted = self.standard(tensor, kind, wanted) if number is None else request.overrides[number][1]
        return Choice(tensor, fallback(wanted, tensor.row), wanted, number)

    def more_bits(self, i: int, n: int) -> bool:
        """The first and the last eighth, and every third between."""
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2

    def place(self, tensor: Tensor, seen: int) -> tuple[int, int]:
        """(layer, layers): from the name in a mixture of experts, by counting otherwise."""
        if self.facts.experts <= 1:
            return seen, self.facts.layers
        layer = _layer(tensor.name)
        if not 0 <= layer < self.facts.layers:
            raise CheckpointError(f"tensor {tensor.name} belongs to no layer", expected=f"0..{self.facts.layers - 1}",
                                  actual=str(layer), remedy="the file is damaged")  # fmt: skip
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
        """The output matrix, and tied embeddings."""
        if self.request.output:
            return self.request.output
        if self.request.file_type == "MXFP4_MOE" or tensor.row % TYPES[NUMBERS[default]][1]:
            return "Q8_0"
        if self.request.file_type in (*_IQ2, "IQ3_XXS"):
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"

    def very_low(self, kind: str, default: str) -> str:
        """Types around two bits and below."""
        ftype, better = self.request.file_type, self.request.file_type in ("IQ2_S", "IQ2_M")
        if kind in ("attn_v", "attn_qkv", "attn_kv_b"):
            self.attn_v_seen += 1
            if self.facts.heads_per_kv >= 4 or self.facts.experts >= 4:
                return "Q4_K"
            return "IQ3_S" if better else "Q2_K"
        if kind == "attn_k" and self.facts.experts == 8:
            return "Q4_K"
        if kind == "ffn_down":
            # Counted, not read from the name: with two down projections per layer this is half the depth.
            self.ffn_down_seen += 1
            if self.ffn_down_seen - 1 < self.facts.layers // 8:
                return "IQ3_S" if better else "Q2_K"
        if kind == "attn_output":
            if self.facts.experts == 8:
                return "Q5_K"
            return "IQ2_XXS" if ftype in ("IQ1_S", "IQ1_M") else "IQ3_S" if better else default
        return default

    def attn_v(self, default: str) -> str:
        """Value projections, fused ones included."""
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
        """Down projections, of experts and dense alike."""
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
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS",
)  # fmt: skip
_ATTN_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
