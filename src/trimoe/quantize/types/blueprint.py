"""A model's GGUF tensors and attention geometry without its weights, read from the header of a GGUF file.

Everything that sizes and memory follow from. `config_blueprint` makes the same from a config.json.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from trimoe.errors import BadInput, CheckpointError
from trimoe.model.gguf.file import Gguf
from trimoe.quantize.types.sizes import Metadata, facts_of, metadata_of
from trimoe.quantize.types.tensor_types import PLAIN, ModelFacts, Tensor, tensors_of


@dataclass(frozen=True)
class Attention:
    """Key-value geometry of one layer. `window` is in tokens, None for full attention; keys and values are cached."""

    kv_heads: int
    key_size: int
    value_size: int
    window: int | None


@dataclass(frozen=True)
class Blueprint:
    """What a plan needs to know of a model. Tensors have the types of the unquantized file."""

    name: str
    facts: ModelFacts
    tensors: tuple[Tensor, ...]
    metadata: Metadata
    attention: tuple[Attention, ...]
    hidden: int
    vocabulary: int
    top_k: int

    def with_experts(self, keep: int) -> "Blueprint":
        """The same model pruned to `keep` experts in each layer. Raises `BadInput`."""
        experts = self.facts.experts
        if not self.top_k <= keep <= experts:
            raise BadInput(
                f"--keep {keep} is impossible",
                expected=f"{self.top_k} (the top-k) to {experts} experts",
                actual=str(keep),
                remedy="choose a count in this range",
            )
        tensors = tuple(
            replace(t, shape=_cut(t.shape, keep)) if is_expert_tensor(t, experts) else t for t in self.tensors
        )
        return replace(self, facts=replace(self.facts, experts=keep), tensors=tensors)


def is_expert_tensor(tensor: Tensor, experts: int) -> bool:
    """Whether the slowest axis of a GGUF tensor counts experts (names as in model/gguf/expert_names.toml)."""
    named = re.search(r"_exps\.|ffn_gate_inp\.(weight|bias)|exp_probs_b", tensor.name)
    # Some converters write vectors as [1, experts].
    return bool(named) and next((length for length in tensor.shape if length != 1), 1) == experts


def _cut(shape: tuple[int, ...], keep: int) -> tuple[int, ...]:
    axis = next((i for i, length in enumerate(shape) if length != 1), 0)
    return (*shape[:axis], keep, *shape[axis + 1 :])


def blueprint_of_gguf(gguf: Gguf) -> Blueprint:
    """A blueprint from the header of an unquantized GGUF file, exact for every family. Raises `CheckpointError`."""
    facts, index = facts_of(gguf), gguf.index
    if quantized := sorted({info.dtype for info in index.values()} - {*PLAIN}):
        raise CheckpointError(
            f"{gguf.path} is already quantized ({', '.join(quantized)})",
            expected="F32, F16 or BF16",
            remedy="give the unquantized file: quantizing twice loses quality",
        )
    if (embedding := index.get("token_embd.weight")) is None:
        raise CheckpointError(f"{gguf.path} has no token_embd.weight", expected="a language model")
    attention = tuple(_attention_of_gguf(gguf, facts.architecture, layer) for layer in range(facts.layers))
    vocabulary, hidden = embedding.shape
    used = gguf.get(f"{facts.architecture}.expert_used_count", 1)
    counts = [int(n) for n in (used if isinstance(used, list) else [used])]
    return Blueprint(
        gguf.path.name,
        facts,
        tuple(tensors_of(index)),
        metadata_of(gguf),
        attention,
        hidden,
        vocabulary,
        max(counts) if counts else 1,
    )


def _attention_of_gguf(gguf: Gguf, architecture: str, layer: int) -> Attention:
    def value(key: str, default: Any = None) -> Any:
        found = gguf.get(f"{architecture}.attention.{key}", default)
        return found[layer] if isinstance(found, list) and layer < len(found) else found

    heads = value("head_count")
    kv_heads = value("head_count_kv", heads)
    hidden = gguf.integer(f"{architecture}.embedding_length") or 0
    size = value("key_length", hidden // heads if heads else 0)
    pattern, window = gguf.get(f"{architecture}.attention.sliding_window_pattern"), value("sliding_window", 0)
    # Without a pattern, the window may apply to some layers only: full attention is the safe assumption.
    sliding = isinstance(pattern, list) and layer < len(pattern) and bool(pattern[layer]) and bool(window)
    if sliding:
        size = value("key_length_swa", size)
        return Attention(int(kv_heads), int(size), int(value("value_length_swa", size)), int(window))
    return Attention(int(kv_heads), int(size), int(value("value_length", size)), None)
