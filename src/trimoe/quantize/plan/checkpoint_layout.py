"""Safetensors headers of a model predicted from its config.json and its family file. Pure.

Names and shapes are those of `transformers`; all tensors have 16 bits, and lie in one file in the order of their names,
as safetensors writes them. Not guaranteed: how a published checkpoint is cut into shards, which changes the number of
digits of offsets in headers (up to 0.1 MB in all); towers that the layout does not know are refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint, bind
from trimoe.model.family.recognise import recognise
from trimoe.model.safetensors import TensorInfo, nbytes_of
from trimoe.quantize.types.config_blueprint import Described, converted_tensors, describe_config
from trimoe.quantize.types.vision import tower_tensors

_FILE = Path("model.safetensors of config.json alone")  # never read
_DTYPE = "BF16"


def checkpoint_of_config(name: str, config: dict[str, Any], *, output: bool | None = None) -> Checkpoint:
    """The headers of a checkpoint with this configuration; its bytes must not be read.

    With its vision tower, if the configuration has one (`_vision_config` in a shipped one). `output` says whether it
    holds an output matrix; None leaves that to tie_word_embeddings. Raises `CheckpointError` as
    `blueprint_of_config`, and for a tower that the layout does not know.
    """
    described = describe_config(name, config)
    text = described.text
    if config.get("audio_config"):
        raise CheckpointError(
            f"{name} has an audio tower, for which there is no layout",
            expected="text and vision",
            remedy="plan from the checkpoint's directory",
        )
    stem = "model.language_model." if "text_config" in config else "model."
    vision = config.get("vision_config") or config.get("_vision_config")
    try:
        shapes = dict(_text(described, stem))
        if output if output is not None else not text.get("tie_word_embeddings", True):
            shapes["lm_head.weight"] = (int(text["vocab_size"]), described.hidden)
        if isinstance(vision, dict):
            shapes |= dict(_vision(name, described, vision))
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
    return bind(Path(name), config, index, recognise(set(index), config))


def _text(described: Described, stem: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for spec, layer, shape in converted_tensors(described):
        if spec.hf is not None:
            yield stem + ("" if layer is None else f"layers.{layer}.") + spec.hf, shape


def _vision(name: str, described: Described, vision: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    tower = described.converted.vision
    required = {} if tower is None else {"model_type": tower.model_type, **tower.required}
    if tower is None or any(vision.get(key, value) != value for key, value in required.items()):
        raise CheckpointError(
            f"no layout for the vision tower of {name}",
            expected=str(required),
            actual=str({key: vision.get(key) for key in required}),
            remedy="plan from the checkpoint's directory",
        )
    for _, tensor, shape in tower_tensors(tower, vision, described.hidden):
        yield tensor, shape
