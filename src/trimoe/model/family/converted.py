"""Section [converted]: every tensor of a converted model, so that sizes can be planned from a config.json alone."""

from typing import Any

from msgspec import field

from trimoe.io.datafile import Data


class ConvertedTensor(Data, frozen=True, kw_only=True):
    """One tensor that llama.cpp's converter writes; families/gemma4.toml explains the dimensions."""

    name: str
    hf: str | None = None
    """Name in a Hugging Face checkpoint, after the prefix of the model or layer."""
    shape: tuple[str, ...]
    f32: bool = False
    not_shared_kv: bool = False


class VisionTensor(Data, frozen=True, kw_only=True):
    """One tensor of a vision tower in a Hugging Face checkpoint; {L} in its name is the number of the block."""

    hf: str
    shape: tuple[str, ...]
    f32: bool = False
    """32 bits in llama.cpp's mmproj file, else 16."""
    only_if: str | None = None


class VisionTower(Data, frozen=True, kw_only=True):
    """Section [converted.vision]. `required` and `defaults` are keys of vision_config."""

    model_type: str
    required: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, int] = field(default_factory=dict)
    outside: tuple[VisionTensor, ...]
    layer: tuple[VisionTensor, ...]


class Converted(Data, frozen=True, kw_only=True):
    """Section [converted] of a family file."""

    required: dict[str, Any] = field(default_factory=dict)
    attention: str = ""
    """Key of config.json that lists each layer's kind of attention; empty: full attention in every layer."""
    metadata_bytes: int
    """GGUF metadata without vocabulary and chat template."""
    outside: tuple[ConvertedTensor, ...]
    """Tensors that belong to no layer."""
    layer: tuple[ConvertedTensor, ...]
    vision: VisionTower | None = None
