"""A GGUF model with experts: counts from the metadata, expert tensors by llama.cpp's names, a fingerprint.

Invariants: every tensor whose name says that it concerns experts is either cut or declared untouched, and each cut one
has one entry per expert on its slowest axis. The names come from the family file (section [gguf]) or are the standard
ones of expert_names.toml.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.experts import ExpertTensor
from trimoe.model.family.file import expert_names
from trimoe.model.family.gguf import GgufNames
from trimoe.model.gguf.file import Gguf, open_gguf
from trimoe.model.groups import Groups
from trimoe.model.identity import add_tensors, describe
from trimoe.model.safetensors import TensorInfo

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")
_OLD_LAYOUT = re.compile(r"ffn_(gate|up|down)\.\d+\.weight")
_MAX_COUNT = 1 << 20


def expert_axis(info: TensorInfo) -> int | None:
    """The slowest axis that is longer than 1: some converters write vectors as [1, experts]. None for one value."""
    return next((axis for axis, length in enumerate(info.shape) if length != 1), None)


@dataclass(frozen=True)
class GgufModel:
    """An opened GGUF model. `architecture` is general.architecture, the prefix of its metadata keys.

    >>> trimoe.open("model.gguf")
    GgufModel('model.gguf', qwen3moe, 3 layers, 8 experts, top-2, 5.5 MB)
    """

    gguf: Gguf
    architecture: str
    names: GgufNames
    num_layers: int
    num_experts: int
    top_k: int

    def __repr__(self) -> str:
        return describe(self, self.architecture)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """The (first) file."""
        return self.gguf.path

    @property
    def index(self) -> dict[str, TensorInfo]:
        """Every tensor by name."""
        return self.gguf.index

    @property
    def count_key(self) -> str:
        """The metadata key that counts experts."""
        return f"{self.architecture}.expert_count"

    @cached_property
    def expert_tensors(self) -> dict[str, ExpertTensor]:
        """Every tensor on the expert axis, by name, validated. Raises `CheckpointError` naming the tensor."""
        found: dict[str, ExpertTensor] = {}
        for name, info in self.index.items():
            match = _LAYER.fullmatch(name)
            rest = match[2] if match else name
            if _OLD_LAYOUT.fullmatch(rest):
                raise self._stray(info, "one tensor per expert, which llama.cpp no longer loads: convert it again")
            if not self.names.concerns_experts(rest):
                continue
            if match and rest in (*self.names.required, *self.names.optional):
                layer, axis = int(match[1]), expert_axis(info)
                if layer >= self.num_layers or axis is None or info.shape[axis] != self.num_experts:
                    raise CheckpointError(
                        f"tensor {name} does not fit the metadata",
                        expected=f"{self.num_experts} experts on its slowest axis, layers 0..{self.num_layers - 1}",
                        actual=str(list(info.shape)),
                        remedy="the file is damaged or of an unknown layout",
                    )
                found[name] = ExpertTensor(rest, layer, info, axis)
            elif rest in self.names.refused:
                raise self._stray(info, self.names.refused[rest])
            elif not match or rest not in self.names.untouched:
                raise self._stray(info, "its name says that it belongs to experts, and no file describes it")
        for layer in sorted({tensor.layer for tensor in found.values()}):
            if missing := [n for n in self.names.required if f"blk.{layer}.{n}" not in found]:
                raise CheckpointError(
                    f"tensor blk.{layer}.{missing[0]} is missing",
                    expected=f"{self.architecture}'s {', '.join(self.names.required)}",
                    actual=f"layer {layer} has other expert tensors",
                    remedy="the file is incomplete",
                )
        if not found:
            raise CheckpointError(
                f"{self.path} has no expert tensors",
                expected="blk.N.ffn_down_exps.weight and others",
                remedy="there is nothing to prune in it",
            )
        return found

    def _stray(self, info: TensorInfo, why: str) -> CheckpointError:
        return CheckpointError(
            f"tensor {info.name} cannot be cut: {why}",
            expected=f"the expert tensors of {self.architecture}",
            actual=f"{info.dtype} {list(info.shape)}",
            remedy="describe it in section [gguf] of the family's file (docs/howto/add-a-family.md)",
        )

    @property
    def groups(self) -> Groups | None:
        """The groups in which experts are routed, or None. llama.cpp makes a group's score of its two best experts in
        every architecture (llama-graph.cpp, build_moe_ffn)."""
        count = self.gguf.integer(f"{self.architecture}.expert_group_count") or 1
        chosen = self.gguf.integer(f"{self.architecture}.expert_group_used_count") or 1
        return Groups(count, chosen, 2) if count > 1 else None

    @cached_property
    def moe_layers(self) -> list[int]:
        """Layers with experts, ascending."""
        return sorted({tensor.layer for tensor in self.expert_tensors.values()})

    @property
    def predicting_layers(self) -> range:
        """The last blocks, which serve multi-token prediction only and do not belong to the decoder depth."""
        count = self.gguf.integer(f"{self.architecture}.nextn_predict_layers") or 0
        return range(self.num_layers - min(count, self.num_layers - 1), self.num_layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.gguf.nbytes

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over metadata (without the keys of a split) and the tensors as `identity.add_tensors` samples them."""
        digest = hashlib.sha256()
        for key in sorted(self.gguf.fields):
            if not key.startswith("split."):
                digest.update(self.gguf.fields[key].raw)
        add_tensors(digest, self.index)
        return digest.hexdigest()


def open_gguf_model(path: Path | str) -> GgufModel:
    """Open and validate a GGUF model with experts. Raises `CheckpointError` naming the key or tensor at fault."""
    gguf = open_gguf(Path(path))
    architecture = gguf.get("general.architecture")
    if not isinstance(architecture, str):
        kind = gguf.get("general.type", "no model")
        raise CheckpointError(
            f"{path} has no general.architecture",
            expected="a model",
            actual=str(kind)[:100],
            remedy="give a model's GGUF file",
        )
    names = expert_names(architecture)
    experts = _count(gguf, f"{architecture}.expert_count", required=False)
    if experts is None:
        raise CheckpointError(
            f"{path} is a dense model",
            expected=f"{architecture}.expert_count of 2 or more",
            actual="no such key, or 0",
            remedy="there is nothing to prune in it",
        )
    if names.refused_model:
        raise CheckpointError(f"{architecture} models cannot be cut exactly: {names.refused_model}", actual=str(path))
    layers = _count(gguf, f"{architecture}.block_count")
    top_k = _count(gguf, f"{architecture}.expert_used_count")
    assert layers is not None
    assert top_k is not None
    if top_k > experts:
        raise CheckpointError(
            f"{path} routes to more experts than there are",
            expected=f"at most {experts}",
            actual=f"{architecture}.expert_used_count = {top_k}",
        )
    model = GgufModel(gguf, architecture, names, layers, experts, top_k)
    _ = model.expert_tensors
    return model


def _count(gguf: Gguf, key: str, required: bool = True) -> int | None:
    """A positive count; of one per layer, the largest. None if it is not `required` and absent or 0."""
    value: Any = gguf.get(key)
    if isinstance(value, list) and value and all(type(v) is int for v in value) and key.endswith("expert_used_count"):
        value = max(value)
    if not required and (value is None or (type(value) is int and value == 0)):
        return None
    if type(value) is not int or not 1 <= value <= _MAX_COUNT:
        raise CheckpointError(
            f"{gguf.path} has no usable {key}",
            expected="a positive integer",
            actual=repr(value)[:100],
            remedy="convert the model again",
        )
    return value
