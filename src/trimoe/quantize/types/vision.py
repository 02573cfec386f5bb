"""Size of a Gemma 4 vision tower as llama.cpp keeps it: an mmproj file beside the language model. Pure.

From `vision_config` alone: matrices have 16 bits, vectors, the position table and the patch embedding 32 (llama.cpp's
conversion/gemma.py and base.py). Not guaranteed: the metadata, of which some hundred bytes are estimated, and audio.
"""

from dataclasses import dataclass
from typing import Any

from trimoe.errors import CheckpointError

_METADATA, _ENTRY = 1500, 75  # bytes: all keys; name, shape, type and offset of one tensor (measured, rounded up)
_DEFAULTS = {"patch_size": 16, "position_embedding_size": 10240}  # Gemma4VisionConfig
_KNOWN = ("gemma4_vision",)


@dataclass(frozen=True)
class Vision:
    """`weights` in the tower and its projection; `nbytes` of its tensors; `tensors` how many there are."""

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
    if (kind := vision.get("model_type")) not in _KNOWN:
        raise CheckpointError(
            f"no layout for the vision tower {kind} of {name}",
            expected=", ".join(_KNOWN),
            remedy="add its size by hand",
        )
    text = config.get("text_config") or config
    try:
        hidden, width, layers = (int(vision[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        heads, size = int(vision["num_attention_heads"]), int(vision["head_dim"])
        kv = int(vision.get("num_key_value_heads", heads))
        patch, positions = (int(vision.get(key, default)) for key, default in _DEFAULTS.items())
        out = int(text["hidden_size"])
    except (KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"the vision tower of {name} is incomplete",
            expected="numbers of Gemma4VisionConfig",
            actual=f"{type(exc).__name__}: {exc}",
        ) from exc
    matrices = layers * hidden * (2 * heads * size + 2 * kv * size + 3 * width) + hidden * out
    vectors = layers * (4 * hidden + 2 * size) + (2 * hidden if vision.get("standardize") else 0)
    wide = vectors + 2 * positions * hidden + hidden * 3 * patch * patch
    return Vision(matrices + wide, 2 * matrices + 4 * wide, 13 * layers + 3 + 2 * bool(vision.get("standardize")))
