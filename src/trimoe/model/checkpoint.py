"""A checkpoint directory: config, tensor index, family, counts, and a fingerprint; no torch, values are read lazily.

Invariants: opening checks every expert tensor's presence and shape against config.json and leaves no tensor of the
experts or the router unexplained, so later steps need not. Values are not checked: `finite.check_finite` does that.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.experts import ExpertSearch, ExpertTensor, draft_blocks, numbered, unclaimed
from trimoe.model.family.file import Family
from trimoe.model.family.hf import HfTensors
from trimoe.model.family.recognise import Recognised, alike, kinds_of, recognise, unknown_groups
from trimoe.model.groups import Groups
from trimoe.model.identity import add_tensors, describe
from trimoe.model.quant import Quant, all_quants, method_of, quant_of
from trimoe.model.safetensors import TensorInfo
from trimoe.model.shards import read_index


@dataclass(frozen=True)
class Checkpoint:
    """An opened MoE checkpoint. `hf` and `prefix` (template of a layer's tensor names) are those recognised in it.

    >>> model = trimoe.open(tiny.path())
    >>> model.family.name, model.moe_layers, model.nbytes
    ('gemma4', (0, 1, 2, 3), 9194504)
    """

    path: Path
    config: dict[str, Any]
    index: dict[str, TensorInfo]
    family: Family
    hf: HfTensors
    prefix: str
    num_layers: int
    num_experts: int
    top_k: int
    quant: Quant | None = None
    notes: tuple[str, ...] = ()
    """What was read although the index and the shards disagree."""

    def __repr__(self) -> str:
        return describe(self, self.family.name)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config_scope(self) -> tuple[str, ...]:
        """Path inside config.json of the object with the expert count: ('text_config',) or ()."""
        text = self.config.get("text_config")
        return ("text_config",) if isinstance(text, dict) and self.hf.config.num_experts in text else ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.index.values())

    @property
    def expert_tensors(self) -> dict[str, ExpertTensor]:
        """Every tensor on the expert axis, by name, checked. Raises `CheckpointError` naming the tensor."""
        return self._search.found

    @cached_property
    def _search(self) -> ExpertSearch:
        return ExpertSearch(
            self.family.name,
            self.hf,
            self.prefix,
            self.index,
            self.num_layers,
            self.num_experts,
            {
                "E": self.num_experts,
                "H": self.setting(self.hf.config.hidden),
                "I": self.setting(self.hf.config.expert_width),
            },
            self.quant,
            method_of(self.config),
        ).run()

    @property
    def warnings(self) -> list[str]:
        """Oddities of the expert tensors that do not prevent an exact cut."""
        return [*self.notes, *self._search.warnings]

    @cached_property
    def draft_blocks(self) -> tuple[str, ...]:
        """Name prefixes of the multi-token-prediction blocks; see `experts.draft_blocks`."""
        return draft_blocks(self.hf, self.index, self.num_layers)

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers with experts, ascending; all layers in most families."""
        return tuple(sorted({tensor.layer for tensor in self.expert_tensors.values()}))

    @property
    def cannot_cut(self) -> str | None:
        """Why no cut of this checkpoint can be exact, or None."""
        if self.groups is not None and self.num_experts % self.groups.count:
            return f"{self.num_experts} experts are not {self.groups.count} equal groups"
        known = set(self.family.model_types) & set(kinds_of(self.config))
        if not known and (grouped := unknown_groups(self.hf, self.config)):
            return f"experts may be routed in groups ({grouped}): a cut would change which are chosen"
        return None

    @property
    def groups(self) -> Groups | None:
        """The groups in which experts are routed, or None."""
        keys = self.hf.config.groups
        if keys is None or any(self._given(key, None) != value for key, value in keys.when.items()):
            return None
        count, chosen = self._given(keys.count, keys.assumed), self._given(keys.chosen, keys.chosen_assumed)
        if type(count) is not int or count <= 1:
            return None
        return Groups(count, chosen if type(chosen) is int and chosen > 0 else 1, keys.scored)

    def _given(self, key: str, otherwise: Any) -> Any:
        """A value of config.json, from text_config first."""
        return next((scope[key] for scope in scopes_of(self.config) if key in scope), otherwise)

    def setting(self, key: str | None) -> int | None:
        """An integer of config.json by its key, from text_config first; None if absent."""
        for scope in scopes_of(self.config):
            if key is not None and type(scope.get(key)) is int:
                return int(scope[key])
        return None

    def layer_of(self, name: str) -> int | None:
        """The decoder layer of a tensor; None for everything else (embedding, vision, drafting blocks)."""
        match = numbered(self.prefix).match(name)
        return int(match[1]) if match and int(match[1]) < self.num_layers else None

    def role_name(self, role: str, layer: int, expert: int | None = None) -> str:
        """Tensor name of a role in a layer (and of one expert, for a per-expert role)."""
        name = self.prefix.replace("{L}", str(layer)) + self.hf.roles[role].tensor
        return name if expert is None else name.replace("{E}", str(expert))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over config.json and the tensors as `identity.add_tensors` samples them."""
        # Not canonical_json: configurations of some families hold Infinity.
        config = json.dumps(self.config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(config.encode())
        add_tensors(digest, self.index)
        return digest.hexdigest()


def scopes_of(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of config.json in which a key may be, in the order of precedence."""
    return (scope for scope in (config.get("text_config"), config) if isinstance(scope, dict))


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open and check a checkpoint directory. Raises `CheckpointError` naming the file or tensor at fault."""
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
    notes: list[str] = []
    index = read_index(path, notes)
    quant = quant_of(config, path, index)
    names = quant.plain_names(set(index)) if quant else set(index)
    try:
        return _as_another(path, config, index, names, quant, notes) or bind(
            path, config, index, recognise(names, config), quant, tuple(notes)
        )
    except CheckpointError as exc:
        if quant is None and (method := method_of(config)) is not None:
            raise _unknown_quantization(method, exc) from exc
        raise


def _unknown_quantization(method: str, exc: CheckpointError) -> CheckpointError:
    """The weights do not have the names of any family because a quantizer that is not known renamed them."""
    known = sorted({name for quant in all_quants() for name in quant.methods})
    return CheckpointError(
        f"the quantization {method} is unknown in this form",
        expected="one of " + ", ".join(known),
        actual=exc.subject,
        remedy="use the unquantized checkpoint, a GGUF file, or a checkpoint of one of these quantizers",
    )


def _as_another(
    path: Path,
    config: dict[str, Any],
    index: dict[str, TensorInfo],
    names: set[str],
    quant: Quant | None,
    notes: list[str],
) -> Checkpoint | None:
    """A checkpoint of an unknown `model_type`, read as the first family that explains all of its expert tensors.

    None if no family has its tensor names and configuration keys. Raises the first family's `CheckpointError` if there
    are such families and none fits.
    """
    refusals = []
    for found in alike(names, config):
        try:
            read = bind(path, config, index, found, quant, (*notes, *filter(None, [found.note])))
            unclaimed(read._search)
        except CheckpointError as exc:
            refusals.append(exc)
        else:
            return read
    if refusals:
        raise refusals[0]
    return None


def bind(
    path: Path,
    config: dict[str, Any],
    index: dict[str, TensorInfo],
    found: Recognised,
    quant: Quant | None = None,
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    """A checkpoint of a recognised family, checked. Raises `CheckpointError`."""
    hf = found.hf.for_config(config)
    counts = []
    for key in (hf.config.num_layers, hf.config.num_experts, hf.config.top_k):
        value = next((scope[key] for scope in scopes_of(config) if key in scope), None)
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
            actual=f"{hf.config.top_k} = {counts[2]}",
            remedy="use the config.json that came with the weights",
        )
    layers, experts, top_k = counts
    checkpoint = Checkpoint(path, config, index, found.family, hf, found.prefix, layers, experts, top_k, quant, notes)
    _ = checkpoint.expert_tensors
    return checkpoint
