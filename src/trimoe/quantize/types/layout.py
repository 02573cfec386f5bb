"""A model's GGUF tensors and attention geometry without its weights: from a config.json and a family's layout data.

Layouts are data in `layouts/`, configurations of known models in `configs/`; both refuse unknown keys or values that
would mean other tensors. Tensors come with the shapes that llama.cpp's converter writes.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trimoe.errors import BadInput, CheckpointError
from trimoe.io.publish import read_json
from trimoe.model.gguf.file import Gguf
from trimoe.quantize.types.sizes import Metadata, facts_of, metadata_of
from trimoe.quantize.types.tensor_types import PLAIN, ModelFacts, Tensor, tensors_of

GENERAL_BYTES = 1900  # metadata of a Gemma 4 without vocabulary and chat template: 37 keys, measured


class TensorSpec(BaseModel):
    """One tensor of a layout: see layouts/gemma4.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    hf: str | None = None
    """Name in a Hugging Face checkpoint, after the prefix of the model or layer."""
    shape: tuple[str, ...]
    f32: bool = False
    not_shared_kv: bool = False


class VisionSpec(BaseModel):
    """One tensor of a vision tower in a Hugging Face checkpoint; {L} in its name is the number of the block."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hf: str
    shape: tuple[str, ...]
    only_if: str | None = None


class VisionLayout(BaseModel):
    """A vision tower: see layouts/gemma4.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    required: dict[str, Any]
    outside: tuple[VisionSpec, ...]
    layer: tuple[VisionSpec, ...]


class Layout(BaseModel):
    """A family's tensors in GGUF."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: str
    model_types: tuple[str, ...]
    required: dict[str, Any]
    outside: tuple[TensorSpec, ...]
    """Tensors that belong to no layer."""
    layer: tuple[TensorSpec, ...]
    vision: VisionLayout | None = None


@dataclass(frozen=True)
class Attention:
    """One layer's key-value geometry. `window` is None for full attention; keys and values are both cached."""

    kv_heads: int
    key_size: int
    value_size: int
    window: int | None


@dataclass(frozen=True)
class Blueprint:
    """All that a plan needs of a model. `base` is the type of its unquantized matrices."""

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
                f"--keep {keep} is impossible", expected=f"{self.top_k} to {experts} experts", actual=str(keep)
            )
        tensors = tuple(
            replace(t, shape=_cut(t.shape, keep)) if is_expert_tensor(t, experts) else t for t in self.tensors
        )
        return replace(self, facts=replace(self.facts, experts=keep), tensors=tensors)


def is_expert_tensor(tensor: Tensor, experts: int) -> bool:
    """Whether the slowest axis of a GGUF tensor counts experts (names as in model/archs_gguf)."""
    named = re.search(r"_exps\.|ffn_gate_inp\.(weight|bias)|exp_probs_b", tensor.name)
    # Some converters write vectors as [1, experts].
    return bool(named) and next((length for length in tensor.shape if length != 1), 1) == experts


def _cut(shape: tuple[int, ...], keep: int) -> tuple[int, ...]:
    axis = next((i for i, length in enumerate(shape) if length != 1), 0)
    return (*shape[:axis], keep, *shape[axis + 1 :])


@cache
def layouts() -> tuple[Layout, ...]:
    """Every shipped layout."""
    folder = resources.files("trimoe.quantize.types") / "layouts"
    found = []
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name):
        try:
            found.append(Layout.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))))
        except (tomllib.TOMLDecodeError, ValidationError) as exc:
            raise CheckpointError(f"layout file {file.name} is not valid", actual=str(exc)[:400]) from exc
    return tuple(found)


def shipped_configs() -> tuple[str, ...]:
    """Names of models whose configuration is shipped."""
    folder = resources.files("trimoe.quantize.plan") / "configs"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def shipped_config(name: str) -> dict[str, Any] | None:
    """The shipped configuration of this name (case and a leading owner/ do not matter, nor a trailing -it)."""
    wanted = name.rpartition("/")[2].lower().removesuffix("-it")
    for known in shipped_configs():
        if known.lower() == wanted:
            text = (resources.files("trimoe.quantize.plan") / "configs" / f"{known}.json").read_text(encoding="utf-8")
            config: dict[str, Any] = json.loads(text)
            return config
    return None


def layout_of(name: str, config: dict[str, Any]) -> tuple[Layout, dict[str, Any]]:
    """The layout of a configuration, and the part of it that is about text. Raises `CheckpointError`."""
    text = config.get("text_config") or config
    kinds = {str(config.get("model_type")), str(text.get("model_type"))}
    layout = next((item for item in layouts() if kinds & set(item.model_types)), None)
    if layout is None:
        known = ", ".join(kind for item in layouts() for kind in item.model_types)
        raise CheckpointError(
            f"there is no GGUF layout for model_type {' in '.join(sorted(kinds))}",
            expected=known,
            actual=name,
            remedy="convert it to GGUF (llama.cpp) and plan from that file",
        )
    for key, value in layout.required.items():
        if text.get(key, value) != value:
            raise CheckpointError(
                f"{name} has {key} = {text[key]!r}, for which the layout is not known",
                expected=repr(value),
                remedy="convert it to GGUF, plan from that",
            )
    return layout, text


def blueprint_of_config(
    name: str, config: dict[str, Any], tokenizer: Path | None = None, *, output: bool | None = None
) -> Blueprint:
    """A blueprint from config.json; tokenizer.json, where there is one, gives the vocabulary's size.

    `output` says whether the checkpoint holds an output matrix of its own (the converter writes it even where
    config.json says that embeddings are tied); None leaves it to config.json.

    Raises `CheckpointError` for a family without a layout or a configuration that means other tensors.
    """
    layout, text = layout_of(name, config)
    try:
        tied = not output if output is not None else bool(text.get("tie_word_embeddings", True))
        return _build(name, layout, text, _metadata(config, tokenizer), tied)
    except (KeyError, TypeError, IndexError, ValueError) as exc:
        raise CheckpointError(
            f"the configuration of {name} is incomplete",
            expected="config.json of the model",
            actual=f"{type(exc).__name__}: {exc}",
        ) from exc


def _build(name: str, layout: Layout, text: dict[str, Any], metadata: Metadata, tied: bool) -> Blueprint:
    attention = _attentions(text)
    heads, experts = int(text["num_attention_heads"]), int(text["num_experts"])
    hidden, vocabulary = int(text["hidden_size"]), int(text["vocab_size"])
    tensors = [
        Tensor(("" if layer is None else f"blk.{layer}.") + spec.name, "F32" if spec.f32 else "BF16", shape)
        for spec, layer, shape in specs_of(layout, text)
    ]
    if not tied:
        after = sum(tensor.name.count("blk.") == 0 for tensor in tensors)
        tensors.insert(after, Tensor("output.weight", "BF16", (vocabulary, hidden)))
    facts = ModelFacts(layout.architecture, len(attention), experts, heads // attention[0].kv_heads)
    return Blueprint(name, facts, tuple(tensors), metadata, attention, hidden, vocabulary, int(text["top_k_experts"]))


def specs_of(layout: Layout, text: dict[str, Any]) -> Iterator[tuple[TensorSpec, int | None, tuple[int, ...]]]:
    """Every tensor of a model with its layer (None outside of them) and its shape; the output matrix is not among them.

    Raises `KeyError`, `TypeError`, `IndexError` or `ValueError` for an incomplete configuration.
    """
    attention, heads = _attentions(text), int(text["num_attention_heads"])
    full = next((a.key_size for a in attention if a.window is None), attention[0].key_size)
    sizes = {
        "H": int(text["hidden_size"]),
        "V": int(text["vocab_size"]),
        "F": int(text["intermediate_size"]),
        "I": int(text["moe_intermediate_size"]),
        "E": int(text["num_experts"]),
        "G": full,
    }
    for spec in layout.outside:
        yield spec, None, tuple(dimension(d, sizes) for d in spec.shape)
    for layer, geometry in enumerate(attention):
        own = sizes | {
            "D": geometry.key_size,
            "Q": heads * geometry.key_size,
            "K": geometry.kv_heads * geometry.key_size,
        }
        shared = geometry.window is None and bool(text.get("attention_k_eq_v"))
        for spec in layout.layer:
            if not (shared and spec.not_shared_kv):
                yield spec, layer, tuple(dimension(d, own) for d in spec.shape)


def _attentions(text: dict[str, Any]) -> tuple[Attention, ...]:
    kinds = list(text["layer_types"])
    if len(kinds) != text["num_hidden_layers"]:
        raise ValueError(f"{len(kinds)} layer_types for {text['num_hidden_layers']} layers")
    return tuple(_attention(text, i, kind, int(text["sliding_window"])) for i, kind in enumerate(kinds))


def _attention(text: dict[str, Any], layer: int, kind: str, window: int) -> Attention:
    """Full layers may have other heads: num_global_key_value_heads, global_head_dim, or per_layer_config."""
    kv, size = int(text["num_key_value_heads"]), int(text["head_dim"])
    if kind == "full_attention":
        kv = int(text.get("num_global_key_value_heads") or kv)
        size = int(text.get("global_head_dim") or size)
    elif kind != "sliding_attention":
        raise ValueError(f"layer {layer} has the unknown type {kind}")
    own = (text.get("per_layer_config") or {}).get(str(layer), {})
    kv, size = int(own.get("num_key_value_heads", kv)), int(own.get("head_dim", size))
    return Attention(kv, size, size, None if kind == "full_attention" else window)


def dimension(text: str, sizes: dict[str, int]) -> int:
    """The length that `2I` or `G/2` means. Raises `ValueError` or `KeyError`."""
    match = re.fullmatch(r"(\d*)([A-Z]?)(?:/(\d+))?", text)
    if match is None or not (match[1] or match[2]):
        raise ValueError(f"{text!r} is not a dimension")
    return int(match[1] or 1) * (sizes[match[2]] if match[2] else 1) // int(match[3] or 1)


def _metadata(config: dict[str, Any], tokenizer: Path | None) -> Metadata:
    if tokenizer is not None and tokenizer.exists():
        template = tokenizer.with_name("chat_template.jinja")
        extra = template.stat().st_size if template.exists() else 0
        return Metadata(GENERAL_BYTES + extra + sum(_vocabulary_bytes(tokenizer)), exact=False)
    return Metadata(int(config.get("_metadata_bytes", GENERAL_BYTES)), exact=False)


def _vocabulary_bytes(tokenizer: Path) -> Iterator[int]:
    """Bytes of tokens, scores, types and merges as GGUF stores them (a length of 8 bytes before every string)."""
    model = read_json(tokenizer, "tokenizer", CheckpointError).get("model", {})
    vocabulary = model.get("vocab", {})
    yield sum(8 + len(token.encode()) for token in vocabulary) + 8 * len(vocabulary)
    for merge in model.get("merges", []):
        yield 8 + len((merge if isinstance(merge, str) else " ".join(merge)).encode())


def blueprint_of_gguf(gguf: Gguf) -> Blueprint:
    """A blueprint from the header of an unquantized GGUF file: exact for every architecture. `CheckpointError`."""
    facts, index = facts_of(gguf), gguf.index
    if quantized := sorted({info.dtype for info in index.values()} - {*PLAIN}):
        raise CheckpointError(
            f"{gguf.path} is quantized already ({', '.join(quantized)})",
            expected="F32, F16 or BF16",
            remedy="quantizing twice loses quality: give the unquantized file",
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
    # Without a pattern per layer a window may hold for some layers only: full attention is the safe assumption.
    sliding = isinstance(pattern, list) and layer < len(pattern) and bool(pattern[layer]) and bool(window)
    if sliding:
        size = value("key_length_swa", size)
        return Attention(int(kv_heads), int(size), int(value("value_length_swa", size)), int(window))
    return Attention(int(kv_heads), int(size), int(value("value_length", size)), None)
