"""Size of a vision tower as llama.cpp keeps it: an mmproj file beside the language model. Pure.

Tensors and types come from section [converted.vision] of the family file. Not guaranteed: the metadata, of which some
hundred bytes are estimated, and audio towers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.family.converted import VisionTensor, VisionTower
from trimoe.model.family.file import families
from trimoe.quantize.types.config_blueprint import dimension

_METADATA, _ENTRY = 1500, 75  # bytes: all keys; name, shape, type and offset of one tensor (measured, rounded up)


@dataclass(frozen=True)
class Vision:
    """`weights` in the tower and its projection; `nbytes` of its tensors; `tensors` is their number."""

    weights: int
    nbytes: int
    tensors: int

    @property
    def file_bytes(self) -> int:
        """Bytes of the mmproj file, within some kB."""
        return self.nbytes + _METADATA + _ENTRY * self.tensors


def vision_of(name: str, config: dict[str, Any]) -> Vision:
    """The tower of a configuration, `_vision_config` in a shipped one. Raises `CheckpointError`."""
    vision = config.get("vision_config") or config.get("_vision_config")
    if not isinstance(vision, dict):
        raise CheckpointError(
            f"{name} has no vision tower", expected="vision_config in config.json", remedy="leave --vision out"
        )
    converted = [family.converted for family in families() if family.converted is not None]
    towers = {one.vision.model_type: one.vision for one in converted if one.vision is not None}
    if (tower := towers.get(str(vision.get("model_type")))) is None:
        raise CheckpointError(
            f"no layout for the vision tower {vision.get('model_type')} of {name}",
            expected=", ".join(towers),
            remedy="leave --vision out and add the size of the mmproj file yourself",
        )
    text = config.get("text_config") or config
    try:
        found = list(tower_tensors(tower, vision, int(text["hidden_size"])))
    except (KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"the vision tower of {name} is incomplete",
            expected=f"the numbers of a {tower.model_type} configuration",
            actual=f"{type(exc).__name__}: {exc}",
        ) from exc
    nbytes = sum(prod(shape) * (4 if spec.f32 else 2) for spec, _, shape in found)
    return Vision(sum(prod(shape) for _, _, shape in found), nbytes, len(found))


def tower_tensors(
    tower: VisionTower, vision: dict[str, Any], text_hidden: int
) -> Iterator[tuple[VisionTensor, str, tuple[int, ...]]]:
    """Every tensor of a tower with its Hugging Face name and its shape; `vision` is the vision_config.

    Raises `KeyError`, `TypeError` or `ValueError` for an incomplete configuration.
    """
    settings = {**tower.defaults, **vision}
    heads, size = int(settings["num_attention_heads"]), int(settings["head_dim"])
    sizes = {
        "H": int(settings["hidden_size"]),
        "F": int(settings["intermediate_size"]),
        "D": size,
        "Q": heads * size,
        "K": int(settings.get("num_key_value_heads", heads)) * size,
        "P": int(settings["position_embedding_size"]),
        "C": 3 * int(settings["patch_size"]) ** 2,
        "T": text_hidden,
    }
    for spec in tower.outside:
        if spec.only_if is None or vision.get(spec.only_if):
            yield spec, spec.hf, tuple(dimension(d, sizes) for d in spec.shape)
    for number in range(int(settings["num_hidden_layers"])):
        for spec in tower.layer:
            yield spec, spec.hf.replace("{L}", str(number)), tuple(dimension(d, sizes) for d in spec.shape)
