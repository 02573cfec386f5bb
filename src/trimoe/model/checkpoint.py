"""A checkpoint as trimoe sees it: config, tensor index, family, counts, and a fingerprint. Torch-free, lazy.

Invariants: opening validates every expert tensor's presence and shape against config.json, so later steps need not.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.artifact import canonical_json, read_json
from trimoe.errors import CheckpointError
from trimoe.model.arch import Arch, Role, detect
from trimoe.model.safetensors import TensorInfo, read_array, read_bytes, read_index

_SAMPLE = 64 << 10
_SMALL = 1 << 20


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor on the expert axis: stacked (`expert` None, cut along `axis`) or of a single `expert`."""

    role: str
    layer: int
    info: TensorInfo
    axis: int
    expert: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """An opened MoE checkpoint. `prefix` is the template of a decoder layer's tensor names."""

    path: Path
    config: dict[str, Any]
    index: dict[str, TensorInfo]
    arch: Arch
    prefix: str
    num_layers: int
    num_experts: int
    top_k: int

    @property
    def config_scope(self) -> tuple[str, ...]:
        """Path inside config.json of the object that holds the counting keys: ('text_config',) or ()."""
        return ("text_config",) if self.arch.config.num_experts in (self.config.get("text_config") or {}) else ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.index.values())

    @cached_property
    def expert_tensors(self) -> dict[str, ExpertTensor]:
        """Every tensor on the expert axis, by name."""
        found: dict[str, ExpertTensor] = {}
        for layer in range(self.num_layers):
            for role_name, role in self.arch.roles.items():
                for tensor in self._of_role(layer, role_name, role):
                    found[tensor.info.name] = tensor
        return found

    def role_name(self, role: str, layer: int) -> str:
        """Tensor name of a stacked role in a layer."""
        return self.prefix.replace("{L}", str(layer)) + self.arch.roles[role].tensor

    def _of_role(self, layer: int, role_name: str, role: Role) -> list[ExpertTensor]:
        base = self.prefix.replace("{L}", str(layer)) + role.tensor
        names = [(e, base.replace("{E}", str(e))) for e in range(self.num_experts)] if role.per_expert else [(None, base)]
        result = []
        for expert, name in names:
            info = self.index.get(name)
            if info is None:
                if role.optional:
                    continue
                raise CheckpointError(
                    f"tensor {name} is missing", expected=f"{role_name} of layer {layer} in every {self.arch.name} model",
                    remedy="the checkpoint is incomplete: download it again",
                )  # fmt: skip
            if expert is None and (len(info.shape) <= role.axis or info.shape[role.axis] != self.num_experts):
                raise CheckpointError(
                    f"tensor {name} does not fit config.json", expected=f"{self.num_experts} experts on axis {role.axis}",
                    actual=f"shape {list(info.shape)}", remedy="config and weights are of different models",
                )  # fmt: skip
            result.append(ExpertTensor(role_name, layer, info, role.axis, expert))
        return result

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over config.json, names, types, shapes, all bytes of tensors up to 1 MiB and three 64 KiB samples of
        each larger one. It identifies a model in seconds at any size; it is not a proof of integrity (certify is)."""
        digest = hashlib.sha256(canonical_json(self.config))
        for name in sorted(self.index):
            info = self.index[name]
            digest.update(f"{name}|{info.dtype}|{info.shape}|".encode())
            if info.nbytes <= _SMALL:
                digest.update(read_bytes(info))
            else:
                for offset in (0, (info.nbytes - _SAMPLE) // 2, info.nbytes - _SAMPLE):
                    digest.update(read_bytes(info, offset, _SAMPLE))
        return digest.hexdigest()


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open and validate a checkpoint directory. Raises `CheckpointError` naming the file or tensor at fault."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a checkpoint directory", expected="a directory with config.json and model*.safetensors",
            actual="a file" if path.exists() else "it does not exist", remedy="check the path",
        )  # fmt: skip
    config = read_json(path / "config.json", "model configuration", CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}/config.json is not a JSON object", expected="a Hugging Face config.json")
    index = read_index(path)
    arch, prefix = detect(set(index), config)
    scopes = [scope for scope in (config.get("text_config"), config) if isinstance(scope, dict)]
    counts = []
    for key in (arch.config.num_layers, arch.config.num_experts, arch.config.top_k):
        value = next((scope[key] for scope in scopes if key in scope), None)
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"config.json has no usable {key}", expected="a positive integer", actual=repr(value),
                remedy="use the config.json that came with the weights",
            )  # fmt: skip
        counts.append(value)
    if counts[2] > counts[1]:
        raise CheckpointError("config.json routes to more experts than there are", expected=f"at most {counts[1]}",
                              actual=f"{arch.config.top_k} = {counts[2]}")  # fmt: skip
    checkpoint = Checkpoint(path, config, index, arch, prefix, *counts)
    _ = checkpoint.expert_tensors
    return checkpoint


def check_finite(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` naming the first floating tensor with NaN or infinity; reads one tensor at a time."""
    for name, info in checkpoint.index.items():
        if info.dtype in ("BF16", "F16", "F32", "F64") and not np.isfinite(read_array(info)).all():
            raise CheckpointError(
                f"tensor {name} holds NaN or infinite values", expected="finite weights",
                remedy="the file is damaged or the model diverged; no statistic of it means anything",
            )  # fmt: skip
