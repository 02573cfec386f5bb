"""A checkpoint as trimoe sees it: config, tensor index, family, counts, and a fingerprint. Torch-free, lazy.

Invariants: opening validates every expert tensor's presence and shape against config.json and leaves no tensor of the
experts or the router unexplained, so later steps need not. Values are not read: `check_finite` does that.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from trimoe.errors import CheckpointError
from trimoe.io.publish import read_json
from trimoe.model.family import Arch, Role, Roles, detect
from trimoe.model.quant import Part, Quant, method_of, parts_of, quant_of
from trimoe.model.safetensors import TensorInfo, read_bytes, read_index

_SAMPLE = 64 << 10
_SMALL = 1 << 20
_BLOCK = 8 << 20
# Exponent masks: a value is NaN or infinite exactly when all exponent bits are set.
_EXPONENT = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor on the expert axis: stacked (`expert` None, cut along `axis`) or of a single `expert`.

    `layer` is the layer whose drops apply: its own, or for a drafting block the last one with experts.
    """

    role: str
    layer: int
    info: TensorInfo
    axis: int
    expert: int | None = None
    template: str = ""

    def renamed(self, position: int) -> str:
        """The name of this expert's tensor when it stands at `position`."""
        return self.template.replace("{E}", str(position))


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
    quant: Quant | None = None

    def __repr__(self) -> str:
        return describe(self, self.arch.name)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config_scope(self) -> tuple[str, ...]:
        """Path inside config.json of the object that holds the counting keys: ('text_config',) or ()."""
        text = self.config.get("text_config")
        return ("text_config",) if isinstance(text, dict) and self.arch.config.num_experts in text else ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.index.values())

    @property
    def expert_tensors(self) -> dict[str, ExpertTensor]:
        """Every tensor on the expert axis, by name, validated. Raises `CheckpointError` naming the tensor."""
        return self._claims[0]

    @cached_property
    def _claims(self) -> tuple[dict[str, ExpertTensor], set[str]]:
        """(tensors on the expert axis, names of quantization scales that serve all experts of a stack alike)."""
        found: dict[str, ExpertTensor] = {}
        whole: set[str] = set()
        for layer in range(self.num_layers):
            prefix, dense = self.prefix.replace("{L}", str(layer)), self.arch.dense_layer
            begun = [self._begins(prefix, role) for role in self.arch.roles.values()]
            if dense is None or not self._has(prefix + dense) or any(begun):
                self._claim(prefix, layer, self.arch.roles, found, whole)
        if not found:
            raise CheckpointError(
                "no decoder layer of this checkpoint has experts",
                expected="a mixture of experts",
                actual="a dense model",
                remedy="there is nothing to prune in it",
            )
        last = max(tensor.layer for tensor in found.values())
        for prefix in self.draft_blocks:
            for roles in self.arch.variants():
                if all(self._begins(prefix, role) for role in roles.values() if not role.optional):
                    self._claim(prefix, last, roles, found, whole)
                    break
        self._refuse_strays(found.keys() | whole)
        return found, whole

    def _claim(self, prefix: str, layer: int, roles: Roles, found: dict[str, ExpertTensor], whole: set[str]) -> None:
        """Adds the expert tensors of one block, each checked."""
        sizes = {
            "E": self.num_experts,
            "H": self.setting(self.arch.config.hidden),
            "I": self.setting(self.arch.config.expert_width),
        }
        for role_name, role in roles.items():
            if role.optional and not self._begins(prefix, role):
                continue
            for part in self._parts(role, prefix + role.tensor):
                info = self.index.get(part.name)
                if info is None:
                    raise CheckpointError(
                        f"tensor {part.name} is missing",
                        expected=f"{role_name} of {prefix[:-1]}, family {self.arch.name}",
                        actual="no such tensor in any shard",
                        remedy="the checkpoint is incomplete: download it again",
                    )
                if part.plain:
                    _check_shape(info, role, sizes)
                key = f"{role_name}.{part.companion}" if part.companion else role_name
                if part.axis is None:
                    whole.add(part.name)
                else:
                    found[part.name] = ExpertTensor(key, layer, info, part.axis, part.expert, part.template)

    def _parts(self, role: Role, template: str) -> Iterator[Part]:
        """The tensors of a role in one block: one, or one per expert, or what a quantization makes of them."""
        quantized = self.quant and parts_of(self.quant, role, template, self.index, self.num_experts)
        if quantized:
            yield from quantized
            return
        for expert in range(self.num_experts) if role.per_expert else (None,):
            yield Part(template.replace("{E}", str(expert)), "", template, role.axis, expert, True)

    def _begins(self, prefix: str, role: Role) -> bool:
        """Whether a block has the (first) tensor of a role. One that lacks the first only is refused as a stray."""
        return self._has(prefix + role.tensor.replace("{E}", "0"))

    def _has(self, name: str) -> bool:
        """Whether a weight is there under this name or the one that its quantization gives it."""
        return name in self.index or (self.quant is not None and self.quant.begins(name, self.index))

    @cached_property
    def draft_blocks(self) -> tuple[str, ...]:
        """Name prefixes of the multi-token-prediction blocks. No map covers them, because only speculative decoding
        uses them; but config.json has one count for all blocks, so their experts are cut like the last layer's."""
        template, found = self.arch.draft_prefix, list[str]()
        if template is not None:
            block = _numbered(template)
            numbers = {int(match[1]) for name in self.index if (match := block.match(name))}
            first = self.num_layers if template in self.arch.layer_prefixes else 0
            found = [template.replace("{L}", str(number)) for number in sorted(numbers) if number >= first]
        return tuple(found)

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers that have experts, ascending; all of them in most families."""
        return tuple(sorted({tensor.layer for tensor in self.expert_tensors.values()}))

    @property
    def cannot_cut(self) -> str | None:
        """Why no cut of this checkpoint can be exact, or None."""
        scopes = [scope for scope in (self.config.get("text_config"), self.config) if isinstance(scope, dict)]
        for key, assumed in self.arch.config.groups.items():
            groups = next((scope[key] for scope in scopes if key in scope), assumed)
            if groups not in (None, 1):
                return f"experts are routed in groups ({key} = {groups}): a cut would change which are chosen"
        return None

    def setting(self, key: str | None) -> int | None:
        """An integer of config.json by its key, from text_config first; None if absent."""
        for scope in (self.config.get("text_config"), self.config):
            if key is not None and isinstance(scope, dict) and type(scope.get(key)) is int:
                return int(scope[key])
        return None

    def layer_of(self, name: str) -> int | None:
        """The decoder layer that a tensor belongs to; None for everything else (embedding, vision, drafting blocks)."""
        match = _numbered(self.prefix).match(name)
        return int(match[1]) if match and int(match[1]) < self.num_layers else None

    def role_name(self, role: str, layer: int, expert: int | None = None) -> str:
        """Tensor name of a role in a layer (and of one expert, for a per-expert role)."""
        name = self.prefix.replace("{L}", str(layer)) + self.arch.roles[role].tensor
        return name if expert is None else name.replace("{E}", str(expert))

    def _refuse_strays(self, claimed: set[str]) -> None:
        """The closed-world check: what looks like experts or router must have been explained."""
        prefixes = (self.prefix, *((self.arch.draft_prefix,) if self.arch.draft_prefix else ()))
        blocks = "|".join(re.escape(prefix).replace(r"\{L\}", r"\d+") for prefix in prefixes)
        layer_name = re.compile(f"(?:{blocks})(.+)")
        for name in self.index:
            match = layer_name.fullmatch(name)
            stray = self.arch.stray(match[1]) if match else "experts" in name.split(".")
            if stray and name not in claimed:
                raise CheckpointError(
                    f"tensor {name} belongs to the experts, but {self.arch.name} has no role for it",
                    expected=f"{', '.join(self.arch.roles)} of experts 0..{self.num_experts - 1}, "
                    f"layers 0..{self.num_layers - 1}",
                    actual=f"{self.index[name].dtype} {list(self.index[name].shape)}, quantization "
                    f"{method_of(self.config) or 'not named in config.json'}",
                    remedy="config and weights are of different models, or this quantized layout cannot be cut",
                )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over config.json, names, types, shapes, all bytes of tensors up to 1 MiB and three 64 KiB samples of
        each larger one. It identifies a model in seconds at any size; it is not a proof of integrity (certify is)."""
        # as canonical_json, but configurations of some families hold Infinity
        config = json.dumps(self.config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(config.encode())
        for name in sorted(self.index):
            info = self.index[name]
            digest.update(f"{name}|{info.dtype}|{info.shape}|".encode())
            if info.nbytes <= _SMALL:
                digest.update(read_bytes(info))
            else:
                for offset in (0, (info.nbytes - _SAMPLE) // 2, info.nbytes - _SAMPLE):
                    digest.update(read_bytes(info, offset, _SAMPLE))
        return digest.hexdigest()


class Countable(Protocol):
    """What the one-line description of a model is made of."""

    @property
    def path(self) -> Path:
        """Directory or file."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""

    @property
    def top_k(self) -> int:
        """Experts that the router selects for a token."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""


def describe(model: Countable, family: str) -> str:
    """A model in one line, as its `repr`."""
    size = f"{model.nbytes / 1e9:.1f} GB" if model.nbytes >= 1e9 else f"{model.nbytes / 1e6:.1f} MB"
    counts = f"{model.num_layers} layers, {model.num_experts} experts, top-{model.top_k}"
    return f"{type(model).__name__}({model.path.name!r}, {family}, {counts}, {size})"


@cache
def _numbered(template: str) -> re.Pattern[str]:
    """A prefix with its layer number as the first group; no number that a model could not have."""
    return re.compile(re.escape(template).replace(r"\{L\}", "(0|[1-9][0-9]{0,6})"))


def _check_shape(info: TensorInfo, role: Role, sizes: dict[str, int | None]) -> None:
    """Each named dimension against config.json; dimensions whose key is unknown or absent are not checked."""
    fits = len(info.shape) == len(role.shape)
    for actual, text in zip(info.shape, role.shape, strict=False):
        size = sizes.get(text[-1])
        wanted = int(text) if text.isdecimal() else size and size * int(text[:-1] or 1)
        fits = fits and wanted in (None, actual)
    if not fits:
        known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items() if size is not None)
        raise CheckpointError(
            f"tensor {info.name} does not fit config.json",
            expected=f"[{', '.join(role.shape)}] with {known}",
            actual=str(list(info.shape)),
            remedy="config and weights are of different models",
        )


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open and validate a checkpoint directory. Raises `CheckpointError` naming the file or tensor at fault."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a checkpoint directory",
            expected="a directory with config.json and model*.safetensors",
            actual="a file" if path.exists() else "it does not exist",
            remedy="check the path",
        )
    config = read_json(path / "config.json", "model configuration", CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}/config.json is not a JSON object", expected="a Hugging Face config.json")
    index = read_index(path)
    quant = quant_of(config, path, index)
    arch, prefix = detect(quant.plain_names(set(index)) if quant else set(index), config)
    return bind(path, config, index, arch, prefix, quant)


def bind(
    path: Path,
    config: dict[str, Any],
    index: dict[str, TensorInfo],
    arch: Arch,
    prefix: str,
    quant: Quant | None = None,
) -> Checkpoint:
    """A checkpoint of a known family, validated. Raises `CheckpointError`."""
    arch = arch.for_config(config)
    scopes = [scope for scope in (config.get("text_config"), config) if isinstance(scope, dict)]
    counts = []
    for key in (arch.config.num_layers, arch.config.num_experts, arch.config.top_k):
        value = next((scope[key] for scope in scopes if key in scope), None)
        if type(value) is not int or not 1 <= value <= 1 << 20:
            raise CheckpointError(
                f"config.json has no usable {key}",
                expected="a positive integer",
                actual=repr(value)[:100],
                remedy="use the config.json that came with the weights",
            )
        counts.append(value)
    if counts[2] > counts[1]:
        raise CheckpointError(
            "config.json routes to more experts than there are",
            expected=f"at most {counts[1]}",
            actual=f"{arch.config.top_k} = {counts[2]}",
            remedy="use the config.json that came with the weights",
        )
    checkpoint = Checkpoint(path, config, index, arch, prefix, counts[0], counts[1], counts[2], quant)
    _ = checkpoint.expert_tensors
    return checkpoint


def check_finite(checkpoint: Checkpoint, roles: Iterable[str] | None = None) -> None:
    """Raise `CheckpointError` naming the first floating tensor with NaN or infinity; memory stays at 8 MiB blocks.

    With `roles` only the expert tensors of these roles are read, e.g. ("router",): cheap at any size.
    """
    import numpy as np

    names = (
        checkpoint.index
        if roles is None
        else [name for name, tensor in checkpoint.expert_tensors.items() if tensor.role in set(roles)]
    )
    for name in names:
        info = checkpoint.index[name]
        if info.dtype not in _EXPONENT:
            continue
        kind, mask = _EXPONENT[info.dtype]
        for offset in range(0, info.nbytes, _BLOCK):
            bits = np.frombuffer(read_bytes(info, offset, min(_BLOCK, info.nbytes - offset)), kind)
            wrong = np.flatnonzero((bits & mask) == mask)
            if wrong.size:
                at = offset // bits.itemsize + int(wrong[0])
                raise CheckpointError(
                    f"tensor {name} holds NaN or infinite values",
                    expected="finite weights",
                    actual=f"at element {at}",
                    remedy="the file is damaged or the model diverged; no statistic of it means anything",
                )
