"""A model's safetensors headers without its files: from a config.json and a family's layout data. Pure.

Names and shapes are those of `transformers`; all tensors have 16 bits, and lie in one file in the order of their names,
as safetensors writes them. Not guaranteed: how a published checkpoint is cut into shards, which changes the number of
digits of offsets in headers (up to 0.1 MB in all); towers that the layout does not know are refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint, bind
from trimoe.model.family import detect
from trimoe.model.safetensors import TensorInfo, nbytes_of
from trimoe.quantize.types.layout import Layout, dimension, layout_of, specs_of

_FILE = Path("model.safetensors of config.json alone")  # never read
_DTYPE = "BF16"
_DEFAULTS = {"patch_size": 16, "position_embedding_size": 10240}  # Gemma4VisionConfig


def checkpoint_of_config(name: str, config: dict[str, Any], *, output: bool | None = None) -> Checkpoint:
    """The headers of a checkpoint with this configuration; its bytes must not be read.

    With its vision tower, if the configuration has one (`_vision_config` in a shipped one). `output` says whether it
    holds an output matrix; None leaves that to tie_word_embeddings. Raises `CheckpointError` as
    `blueprint_of_config`, and for a tower that the layout does not know.
    """
    layout, text = layout_of(name, config)
    if config.get("audio_config"):
        raise CheckpointError(
            f"{name} has an audio tower, for which there is no layout",
            expected="text and vision",
            remedy="plan from the checkpoint's directory",
        )
    stem = "model.language_model." if "text_config" in config else "model."
    vision = config.get("vision_config") or config.get("_vision_config")
    try:
        shapes = dict(_text(layout, text, stem))
        if output if output is not None else not text.get("tie_word_embeddings", True):
            shapes["lm_head.weight"] = (int(text["vocab_size"]), int(text["hidden_size"]))
        if isinstance(vision, dict):
            shapes |= dict(_vision(name, layout, vision, int(text["hidden_size"])))
    except (KeyError, TypeError, IndexError, ValueError) as exc:
        raise CheckpointError(
            f"the configuration of {name} is incomplete",
            expected="config.json of the model",
            actual=f"{type(exc).__name__}: {exc}",
        ) from exc
    index, at = {}, 0
    for tensor, shape in sorted(shapes.items()):
        end = at + nbytes_of(_DTYPE, shape)
        index[tensor] = TensorInfo(tensor, _DTYPE, shape, _FILE, at, end)
        at = end
    arch, prefix = detect(set(index), config)
    return bind(Path(name), config, index, arch, prefix)


def _text(layout: Layout, text: dict[str, Any], stem: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for spec, layer, shape in specs_of(layout, text):
        if spec.hf is not None:
            yield stem + ("" if layer is None else f"layers.{layer}.") + spec.hf, shape


def _vision(
    name: str, layout: Layout, vision: dict[str, Any], text_hidden: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    tower = layout.vision
    if tower is None or any(vision.get(key, value) != value for key, value in tower.required.items()):
        wanted = tower.required if tower else {}
        raise CheckpointError(
            f"no layout for the vision tower of {name}",
            expected=str(wanted),
            actual=str({key: vision.get(key) for key in wanted}),
            remedy="plan from the checkpoint's directory",
        )
    heads, size = int(vision["num_attention_heads"]), int(vision["head_dim"])
    patch, positions = (int(vision.get(key, default)) for key, default in _DEFAULTS.items())
    sizes = {
        "H": int(vision["hidden_size"]),
        "F": int(vision["intermediate_size"]),
        "D": size,
        "Q": heads * size,
        "K": int(vision.get("num_key_value_heads", heads)) * size,
        "P": positions,
        "C": 3 * patch * patch,
        "T": text_hidden,
    }
    for spec in tower.outside:
        if spec.only_if is None or vision.get(spec.only_if):
            yield spec.hf, tuple(dimension(d, sizes) for d in spec.shape)
    for number in range(int(vision["num_hidden_layers"])):
        for spec in tower.layer:
            yield spec.hf.replace("{L}", str(number)), tuple(dimension(d, sizes) for d in spec.shape)
