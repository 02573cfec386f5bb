"""A blueprint from a config.json alone, through the section [converted] of the family file.

Tensors have the names and shapes that llama.cpp's converter writes. Configurations that mean other tensors are refused.
Not guaranteed: the size of the metadata, which is estimated.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.family.converted import Converted, ConvertedTensor
from trimoe.model.family.file import Family, candidates, families
from trimoe.model.family.hf import ConfigKeys
from trimoe.quantize.types.blueprint import Attention, Blueprint
from trimoe.quantize.types.sizes import Metadata
from trimoe.quantize.types.tensor_types import ModelFacts, Tensor


@dataclass(frozen=True)
class Described:
    """A configuration with what its family file says about it. `text` is the text model's part of config.json."""

    family: Family
    converted: Converted
    keys: ConfigKeys
    text: dict[str, Any]

    @property
    def hidden(self) -> int:
        """Hidden size of the text model. Raises `KeyError`, `TypeError` or `ValueError`."""
        return int(self.text[self.keys.hidden or "hidden_size"])


def describe_config(name: str, config: dict[str, Any]) -> Described:
    """The family of a configuration. Raises `CheckpointError` for a family without a section [converted]."""
    text = config.get("text_config") or config
    kinds = sorted({str(config.get("model_type")), str(text.get("model_type"))})
    for family in candidates(kinds):
        if family.converted is not None and family.hf is not None and set(kinds) & set(family.model_types):
            break
    else:
        raise CheckpointError(
            f"there is no GGUF layout for model_type {' in '.join(kinds)}",
            expected=", ".join(kind for one in families() if one.converted for kind in one.model_types),
            actual=name,
            remedy="convert it to GGUF (llama.cpp) and plan from that file, or add section [converted] to its family",
        )
    for key, value in family.converted.required.items():
        if text.get(key, value) != value:
            raise CheckpointError(
                f"{name} has {key} = {text[key]!r}, for which the GGUF layout is not known",
                expected=repr(value),
                remedy="convert it to GGUF and plan from that file",
            )
    return Described(family, family.converted, family.hf.for_config(config).config, text)


def blueprint_of_config(
    name: str, config: dict[str, Any], tokenizer: Path | None = None, *, output: bool | None = None
) -> Blueprint:
    """A blueprint from config.json; tokenizer.json, where there is one, gives the size of the vocabulary.

    `output` says whether the checkpoint has its own output matrix (the converter writes it even where config.json says
    that embeddings are tied); None leaves that to config.json.

    Raises `CheckpointError` for a family without a layout or a configuration that means other tensors.
    """
    described = describe_config(name, config)
    try:
        tied = not output if output is not None else bool(described.text.get("tie_word_embeddings", True))
        return _build(name, described, _metadata(described.converted, config, tokenizer), tied)
    except (KeyError, TypeError, IndexError, ValueError) as exc:
        raise CheckpointError(
            f"the configuration of {name} is incomplete",
            expected="config.json of the model",
            actual=f"{type(exc).__name__}: {exc}",
        ) from exc


def _build(name: str, described: Described, metadata: Metadata, tied: bool) -> Blueprint:
    text, keys = described.text, described.keys
    attention = _attentions(described)
    heads, experts = int(text["num_attention_heads"]), int(text[keys.num_experts])
    hidden, vocabulary = described.hidden, int(text["vocab_size"])
    tensors = [
        Tensor(("" if layer is None else f"blk.{layer}.") + spec.name, "F32" if spec.f32 else "BF16", shape)
        for spec, layer, shape in converted_tensors(described)
    ]
    if not tied:
        after = sum(tensor.name.count("blk.") == 0 for tensor in tensors)
        tensors.insert(after, Tensor("output.weight", "BF16", (vocabulary, hidden)))
    architecture = described.family.architectures[0]
    facts = ModelFacts(architecture, len(attention), experts, heads // attention[0].kv_heads)
    return Blueprint(name, facts, tuple(tensors), metadata, attention, hidden, vocabulary, int(text[keys.top_k]))


def converted_tensors(described: Described) -> Iterator[tuple[ConvertedTensor, int | None, tuple[int, ...]]]:
    """Every tensor of a model with its layer (None outside of them) and its shape, without the output matrix.

    Raises `KeyError`, `TypeError`, `IndexError` or `ValueError` for an incomplete configuration.
    """
    text, attention, heads = described.text, _attentions(described), int(described.text["num_attention_heads"])
    full = next((a.key_size for a in attention if a.window is None), attention[0].key_size)
    sizes = _sizes(described) | {"G": full}
    for spec in described.converted.outside:
        yield spec, None, tuple(dimension(d, sizes) for d in spec.shape)
    for layer, geometry in enumerate(attention):
        own = sizes | {
            "D": geometry.key_size,
            "Q": heads * geometry.key_size,
            "K": geometry.kv_heads * geometry.key_size,
        }
        shared = geometry.window is None and bool(text.get("attention_k_eq_v"))
        for spec in described.converted.layer:
            if not (shared and spec.not_shared_kv):
                yield spec, layer, tuple(dimension(d, own) for d in spec.shape)


def _sizes(described: Described) -> dict[str, int]:
    """The values of H, V, F, I and E that the family's shapes use. Raises `KeyError` naming the missing key."""
    keys, converted = described.keys, described.converted
    names = {
        "H": keys.hidden or "hidden_size",
        "V": "vocab_size",
        "F": "intermediate_size",
        "I": keys.expert_width or "moe_intermediate_size",
        "E": keys.num_experts,
    }
    used = {text for spec in (*converted.outside, *converted.layer) for text in "".join(spec.shape)}
    return {letter: int(described.text[name]) for letter, name in names.items() if letter in used}


def _attentions(described: Described) -> tuple[Attention, ...]:
    text, key = described.text, described.converted.attention
    layers = int(text["num_hidden_layers"])
    if not key:
        size = int(text.get("head_dim") or described.hidden // int(text["num_attention_heads"]))
        return (Attention(int(text["num_key_value_heads"]), size, size, None),) * layers
    kinds = list(text[key])
    if len(kinds) != layers:
        raise ValueError(f"{len(kinds)} {key} for {layers} layers")
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


def _metadata(converted: Converted, config: dict[str, Any], tokenizer: Path | None) -> Metadata:
    if tokenizer is not None and tokenizer.exists():
        template = tokenizer.with_name("chat_template.jinja")
        extra = template.stat().st_size if template.exists() else 0
        return Metadata(converted.metadata_bytes + extra + sum(_vocabulary_bytes(tokenizer)), exact=False)
    return Metadata(int(config.get("_metadata_bytes", converted.metadata_bytes)), exact=False)


def _vocabulary_bytes(tokenizer: Path) -> Iterator[int]:
    """Bytes of tokens, scores, types and merges as GGUF stores them (a length of 8 bytes before every string)."""
    model = read_json(tokenizer, "tokenizer", CheckpointError).get("model", {})
    vocabulary = model.get("vocab", {})
    yield sum(8 + len(token.encode()) for token in vocabulary) + 8 * len(vocabulary)
    for merge in model.get("merges", []):
        yield 8 + len((merge if isinstance(merge, str) else " ".join(merge)).encode())
