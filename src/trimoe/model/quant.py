"""Quantized checkpoints: which tensors belong to a quantized weight, one TOML file per scheme in `quants/`.

A cut never converts: the tensors of a kept expert move with it, those of a dropped expert are removed. Scales that
belong to one expert stay exact under a cut; one value for a whole stack stays unchanged, because it means the same for
the experts that remain. Invariants: a rule names every tensor in a quantized expert's module; every expert has exactly
one weight and everything that it needs. Refused: values that mix several experts, or that cannot be assigned to one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.io.datafile import Data, convert, load, parse
from trimoe.model.family.hf import Role
from trimoe.model.safetensors import TensorInfo

Index = dict[str, TensorInfo]
_WEIGHT = "weight"
_FLOAT = ("F64", "F32", "F16", "BF16")
"""Types of a weight that is not quantized."""
_UNPACKED = (*_FLOAT, "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8")
"""Types with one entry per value, so that the family's shape must fit."""


class Rule(Data, frozen=True, kw_only=True):
    """The tensors of one quantized weight; quants/compressed_tensors.toml explains each key."""

    main: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    rows: bool = True
    factor: str | None = None
    """A single float that multiplies (`factor_divides`: divides) the whole weight, if there is one."""
    factor_divides: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Every name of the rule."""
        return (self.main, *self.required, *self.optional)

    def fits(self, base: str, index: Index) -> bool:
        """Whether a module or stack has quantized values and the tensors that they need."""
        main = index.get(base + self.main)
        return main is not None and main.dtype not in _FLOAT and all(base + s in index for s in self.required)

    def __post_init__(self) -> None:
        if not self.required or len(set(self.suffixes)) != len(self.suffixes):
            raise ValueError(f"rule {self.main!r} needs required tensors, each named once")
        if self.factor is not None and self.factor not in self.suffixes:
            raise ValueError(f"rule {self.main!r}: factor {self.factor!r} is none of its tensors")


class Quant(Data, frozen=True, kw_only=True):
    """A quantization scheme."""

    name: str
    methods: tuple[str, ...]
    files: tuple[str, ...] = ()
    loader: str | None = None
    packages: tuple[str, ...] = ()
    runs: bool = False
    module: tuple[Rule, ...] = ()
    stack: tuple[Rule, ...] = ()

    def appears_in(self, index: Index) -> bool:
        """Whether some weight has all tensors that a rule requires, under names that no unquantized weight has."""
        for rule, dot in [*((r, ".") for r in self.module), *((r, "") for r in self.stack)]:
            end = dot + rule.required[0]
            for name in index:
                base = name.removesuffix(rule.required[0])
                if name.endswith(end) and rule.fits(base, index):
                    return True
        return False

    def begins(self, name: str, index: Index) -> bool:
        """Whether there is a weight under this name or another one of the scheme."""
        base = name.removesuffix(_WEIGHT)
        return name in index or (base != name and any(base + rule.main in index for rule in self.module))

    def plain_names(self, names: set[str]) -> set[str]:
        """`names` and the unquantized name of each weight stored under another one; families are recognised by them."""
        mains = tuple(f".{rule.main}" for rule in self.module if rule.main != _WEIGHT)
        found = {n.removesuffix(main) + f".{_WEIGHT}" for n in names for main in mains if n.endswith(main)}
        return names | found


@dataclass(frozen=True)
class Part:
    """One tensor of a role's weights.

    `companion` is empty for the values themselves, else the suffix of a scale or similar; `axis` is None for one value
    that serves all experts; `plain` tensors must have the family's shape; `template` is the name with `{E}`.
    """

    name: str
    companion: str
    template: str
    axis: int | None
    expert: int | None
    plain: bool


def parse_quant(text: str, source: str) -> Quant:
    """A scheme from TOML text. Raises `CheckpointError` with the path of the wrong key."""
    what = f"quantization file {source}"
    return convert(parse(text, what, "toml", error=CheckpointError), Quant, what, error=CheckpointError)


@cache
def all_quants() -> tuple[Quant, ...]:
    """Every shipped scheme, by file name."""
    files = sorted((Path(__file__).parent / "quants").glob("*.toml"))
    return tuple(load(Quant, file, f"quantization file {file.name}", error=CheckpointError) for file in files)


def method_of(config: dict[str, Any]) -> str | None:
    """quant_method of a config.json, or None."""
    for scope in (config, config.get("text_config")):
        settings = scope.get("quantization_config") if isinstance(scope, dict) else None
        if isinstance(settings, dict) and isinstance(settings.get("quant_method"), str):
            return str(settings["quant_method"])
    return None


def quant_of(config: dict[str, Any], folder: Path, index: Index) -> Quant | None:
    """The scheme that config.json names or that a file beside it belongs to, else the first one with matching tensors.

    None: not quantized, or in a way that no file describes.
    """
    method = method_of(config)
    if method is not None:
        return next((quant for quant in all_quants() if method in quant.methods), None)
    beside = next((q for q in all_quants() if any((folder / name).is_file() for name in q.files)), None)
    return beside or next((q for q in all_quants() if q.appears_in(index)), None)


def parts_of(quant: Quant, role: Role, template: str, index: Index, experts: int) -> list[Part] | None:
    """Every tensor of a role in one block, or None if no rule of the scheme applies.

    Raises `CheckpointError` naming the tensor that is missing, stored twice, or cannot be cut by expert.
    """
    if role.per_expert:
        return list(_expert_parts(quant, template, index, experts)) if template.endswith(f".{_WEIGHT}") else None
    return _stack_parts(quant, template, role, index, experts)


def _expert_parts(quant: Quant, template: str, index: Index, experts: int) -> Iterator[Part]:
    module = template.removesuffix(_WEIGHT)
    for expert in range(experts):
        base = module.replace("{E}", str(expert))
        rule = _rule_for(quant, base, index)
        for suffix in (_WEIGHT,) if rule is None else rule.suffixes:
            if (info := index.get(base + suffix)) is not None:
                main = suffix == _WEIGHT if rule is None else suffix == rule.main
                plain = suffix == _WEIGHT and info.dtype in _UNPACKED
                yield Part(info.name, "" if main else suffix, module + suffix, 0, expert, plain)


def _rule_for(quant: Quant, base: str, index: Index) -> Rule | None:
    """The rule that fits a module's tensors; None if its weight is not quantized."""
    mains = {rule.main for rule in quant.module if base + rule.main in index} | (
        {_WEIGHT} if base + _WEIGHT in index else set()
    )
    if len(mains) > 1:
        raise CheckpointError(
            f"the weights of {base[:-1]} are stored twice",
            expected="one of them",
            actual=", ".join(base + main for main in sorted(mains)),
            remedy="the checkpoint mixes two conversions: download it again",
        )
    rules = [rule for rule in quant.module if rule.main in mains]
    if (fitting := next((rule for rule in rules if rule.fits(base, index)), None)) is not None:
        return fitting
    if mains == {_WEIGHT} and index[base + _WEIGHT].dtype in _FLOAT:
        return None
    missing = [base + s for rule in rules for s in rule.required if base + s not in index] or [base + _WEIGHT]
    raise CheckpointError(
        f"tensor {missing[0]} is missing",
        expected=f"the weight of {base[:-1]} with its scales, as {quant.name} stores it",
        actual="no such tensor in any shard",
        remedy="the checkpoint is incomplete: download it again",
    )


def _stack_parts(quant: Quant, name: str, role: Role, index: Index, experts: int) -> list[Part] | None:
    """The parts of a tensor on the expert axis: a stack, or a router, whose outputs are the experts."""
    module = name.endswith(f".{_WEIGHT}")
    base = name.removesuffix(_WEIGHT) if module else name
    for rule in quant.module if module else quant.stack:
        if not rule.fits(base, index):
            continue
        parts = []
        for suffix in rule.suffixes:
            info = index.get(base + suffix)
            if info is None:
                continue
            main = suffix == rule.main
            axis = None if prod(info.shape) == 1 and not main else role.axis if main else 0
            if axis is not None:
                _along(info, axis, experts, rule)
            plain = info.name == name and info.dtype in _UNPACKED
            parts.append(Part(info.name, "" if main else suffix.strip("_"), info.name, axis, None, plain))
        return parts
    return None


def _along(info: TensorInfo, axis: int, experts: int, rule: Rule) -> None:
    """Raise unless an axis counts experts."""
    if not rule.rows:
        reason = "it packs several experts into one value"
    elif len(info.shape) <= axis or info.shape[axis] != experts:
        reason = f"{list(info.shape)} has no axis of {experts} experts: one entry serves or holds several of them"
    else:
        return
    raise CheckpointError(
        f"tensor {info.name} cannot be cut by expert",
        expected="entries of one expert each",
        actual=reason,
        remedy="prune the unquantized checkpoint and quantize the result",
    )
