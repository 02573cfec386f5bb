"""The tensors on the expert axis of a checkpoint, each checked against its family and config.json.

Invariants: every tensor of a role is present with the shape that config.json implies, and every tensor that looks like
experts or router has a role.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from trimoe.errors import CheckpointError
from trimoe.model.family.hf import HfTensors, Role, Roles
from trimoe.model.quant import Part, Quant, parts_of
from trimoe.model.safetensors import TensorInfo
from trimoe.model.siblings import QuantizedMatrix, compare_siblings, quantized_matrices


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
        """The name of this expert's tensor at position `position`."""
        return self.template.replace("{E}", str(position))


@dataclass
class ExpertSearch:
    """One pass over a checkpoint. `found` and `whole` are its result.

    `sizes` are the known values of E, H and I; `method` is the quantization that config.json names.
    """

    family: str
    hf: HfTensors
    prefix: str
    index: dict[str, TensorInfo]
    num_layers: int
    num_experts: int
    sizes: Mapping[str, int | None]
    quant: Quant | None = None
    method: str | None = None
    found: dict[str, ExpertTensor] = field(default_factory=dict)
    """Tensors on the expert axis by name."""
    whole: set[str] = field(default_factory=set)
    """Names of quantization scales that serve all experts of a stack."""
    warnings: list[str] = field(default_factory=list)
    """Oddities of the expert tensors that do not prevent an exact cut."""
    matrices: list[QuantizedMatrix] = field(default_factory=list)

    def run(self) -> "ExpertSearch":
        """Search every layer and drafting block. Raises `CheckpointError` naming the tensor."""
        for layer in range(self.num_layers):
            prefix, dense = self.prefix.replace("{L}", str(layer)), self.hf.dense_layer
            begun = [self._begins(prefix, role) for role in self.hf.roles.values()]
            if dense is None or not self._has(prefix + dense) or any(begun):
                self._claim(prefix, layer, self.hf.roles)
        if not self.found:
            raise CheckpointError(
                "no decoder layer of this checkpoint has experts",
                expected="a mixture of experts",
                actual="a dense model",
                remedy="there is nothing to prune in it",
            )
        last = max(tensor.layer for tensor in self.found.values())
        for prefix in draft_blocks(self.hf, self.index, self.num_layers):
            for roles in self.hf.variants():
                if all(self._begins(prefix, role) for role in roles.values() if not role.optional):
                    self._claim(prefix, last, roles)
                    break
        self._refuse_strays()
        self.warnings += compare_siblings(self.matrices, self.quant)
        return self

    def _claim(self, prefix: str, layer: int, roles: Roles) -> None:
        """Add the expert tensors of one block, each checked."""
        for role_name, role in roles.items():
            if role.optional and not self._begins(prefix, role):
                continue
            parts = list(self._parts(role, prefix + role.tensor))
            self.matrices += quantized_matrices(role_name, prefix, parts, self.index)
            for part in parts:
                info = self.index.get(part.name)
                if info is None:
                    raise CheckpointError(
                        f"tensor {part.name} is missing",
                        expected=f"{role_name} of {prefix[:-1]}, family {self.family}",
                        actual="no such tensor in any shard",
                        remedy="the checkpoint is incomplete: download it again",
                    )
                if part.plain:
                    _check_shape(info, role, self.sizes)
                key = f"{role_name}.{part.companion}" if part.companion else role_name
                if part.axis is None:
                    self.whole.add(part.name)
                else:
                    self.found[part.name] = ExpertTensor(key, layer, info, part.axis, part.expert, part.template)

    def _parts(self, role: Role, template: str) -> Iterator[Part]:
        """The tensors of a role in one block: one, one per expert, or those of a quantization."""
        quantized = self.quant and parts_of(self.quant, role, template, self.index, self.num_experts)
        if quantized:
            yield from quantized
            return
        for expert in range(self.num_experts) if role.per_expert else (None,):
            yield Part(template.replace("{E}", str(expert)), "", template, role.axis, expert, True)

    def _begins(self, prefix: str, role: Role) -> bool:
        """Whether a block has the (first) tensor of a role. Without the first, the others are refused as strays."""
        return self._has(prefix + role.tensor.replace("{E}", "0"))

    def _has(self, name: str) -> bool:
        """Whether there is a weight of this name, or of the name that its quantization gives it."""
        return name in self.index or (self.quant is not None and self.quant.begins(name, self.index))

    def _refuse_strays(self) -> None:
        """Refuse tensors that look like experts or router and have no role."""
        prefixes = (self.prefix, *((self.hf.draft_prefix,) if self.hf.draft_prefix else ()))
        blocks = "|".join(re.escape(prefix).replace(r"\{L\}", r"\d+") for prefix in prefixes)
        layer_name = re.compile(f"(?:{blocks})(.+)")
        claimed = self.found.keys() | self.whole
        for name, info in self.index.items():
            match = layer_name.fullmatch(name)
            stray = self.hf.stray(match[1]) if match else "experts" in name.split(".")
            if stray and name not in claimed:
                raise CheckpointError(
                    f"tensor {name} belongs to the experts, but family {self.family} has no role for it",
                    expected=f"{', '.join(self.hf.roles)} of experts 0..{self.num_experts - 1}, "
                    f"layers 0..{self.num_layers - 1}",
                    actual=f"{info.dtype} {list(info.shape)}, quantization {self.method or 'not named in config.json'}",
                    remedy="use config.json and weights of one model; other quantized layouts cannot be cut",
                )


_SUSPECT = re.compile(r"(^|[._])(experts?|routers?|moe|gate)([._]|$)")


def unclaimed(found: ExpertSearch) -> None:
    """Refuse a tensor that may have one value per expert and that no role claims, for an unknown `model_type`.

    A family lists where its expert tensors are; an unknown type may have more of them elsewhere. Suspect is a tensor of
    a decoder layer with an axis as long as there are experts, if it lies in the module that holds the experts or the
    router, or mentions them in its name. Raises `CheckpointError`.
    """
    layer, modules = (
        numbered(found.prefix),
        tuple({role.tensor.split(".")[0] + "." for role in found.hf.roles.values()}),
    )
    for name, info in found.index.items():
        rest = name[match.end() :] if (match := layer.match(name)) else "shared"
        known = name in found.found or rest in found.hf.untouched or "shared" in rest
        if known or found.num_experts not in info.shape:
            continue
        if rest.startswith(modules) or _SUSPECT.search(rest):
            raise CheckpointError(
                f"tensor {name} may hold one value per expert, and no known family has it",
                expected="expert and router tensors of one known family, and no others",
                actual=f"shape {list(info.shape)}, {found.num_experts} experts",
                remedy="describe the family in a file (docs/howto/add-a-family.md)",
            )


def draft_blocks(hf: HfTensors, index: Mapping[str, TensorInfo], num_layers: int) -> tuple[str, ...]:
    """Name prefixes of the multi-token-prediction blocks.

    Only speculative decoding uses them, so no drop map covers them. But config.json has one expert count for all
    blocks: their experts are cut like those of the last layer.
    """
    template, found = hf.draft_prefix, list[str]()
    if template is not None:
        block = numbered(template)
        numbers = {int(match[1]) for name in index if (match := block.match(name))}
        first = num_layers if template in hf.layer_prefixes else 0
        found = [template.replace("{L}", str(number)) for number in sorted(numbers) if number >= first]
    return tuple(found)


@cache
def numbered(template: str) -> re.Pattern[str]:
    """A layer prefix with its number as the first group; numbers that no model can have do not match."""
    return re.compile(re.escape(template).replace(r"\{L\}", "(0|[1-9][0-9]{0,6})"))


def _check_shape(info: TensorInfo, role: Role, sizes: Mapping[str, int | None]) -> None:
    """Compare each named dimension with config.json; dimensions without a known size are not checked."""
    fits = len(info.shape) == len(role.shape)
    for actual, text in zip(info.shape, role.shape, strict=False):
        letter, _, part = text.lstrip("0123456789").partition("/")
        size, times = sizes.get(letter), text[: len(text) - len(text.lstrip("0123456789"))]
        expected = int(text) if text.isdecimal() else size and -(-size * int(times or 1) // int(part or 1))
        fits = fits and expected in (None, actual)
    if not fits:
        known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items() if size is not None)
        raise CheckpointError(
            f"tensor {info.name} does not fit config.json",
            expected=f"[{', '.join(role.shape)}] with {known}",
            actual=str(list(info.shape)),
            remedy="use the config.json that came with the weights",
        )
