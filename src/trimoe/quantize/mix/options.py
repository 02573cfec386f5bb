"""Choices of a measured mix: groups of tensors, and for each the types that differ on this model. Pure.

A group is the tensors of one role in one layer: attention, the dense FFN, the experts' gate and up projections, the
experts' down projections; embeddings and output matrix form one group. Types that fall back to the same types (rows of
704 values turn Q4_K into Q5_0) are one option. Sizes are exact: a file is a fixed part plus the chosen options.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from trimoe.model.gguf.format import nbytes_of, padded
from trimoe.model.gguf.header import DEFAULT_ALIGNMENT
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.fallback import fallback
from trimoe.quantize.types.tensor_types import (
    FILE_TYPES,
    NEEDS_IMATRIX,
    Tensor,
    allows_quantization,
    category,
    layer_of,
)
from trimoe.quantize.types.tiers import Tier

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_XS")
# A file type is only a label where every tensor has its own line; it names what most of the bytes are.
_LABELS = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "IQ2_S": "IQ2_M", "MXFP4": "MXFP4_MOE"}


@dataclass(frozen=True)
class Option:
    """One type for a group: requested as `wanted`, stored as `dtypes` (in the order of the group's tensors)."""

    wanted: str
    dtypes: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class Group:
    """Tensors that get their type together."""

    name: str
    tensors: tuple[Tensor, ...]
    options: tuple[Option, ...]

    def overrides(self, wanted: str) -> tuple[tuple[str, str], ...]:
        """--tensor-type lines for this group alone."""
        return tuple((f"^{re.escape(tensor.name)}$", wanted) for tensor in self.tensors)


def groups_of(blueprint: Blueprint, types: Sequence[str], entries: Collection[str]) -> list[Group]:
    """Every tensor that llama-quantize touches, in exactly one group, by layer. Raises `CheckpointError`.

    `entries` names the tensors of the imatrix: the lowest types are options only for these. llama-quantize requires an
    entry too, except for embeddings, where it fails an assertion instead.
    """
    found: dict[str, list[Tensor]] = {}
    for tensor in sorted(blueprint.tensors, key=lambda t: layer_of(t.name)):
        if allows_quantization(tensor):
            found.setdefault(_group(tensor), []).append(tensor)
    return [Group(name, tuple(ts), _options(ts, types, entries)) for name, ts in found.items()]


def _group(tensor: Tensor) -> str:
    kind, name = category(tensor.name), tensor.name
    if kind in ("token_embd", "output"):
        return "embeddings"
    if kind.startswith("attn"):
        role = "attention"
    elif "_exps." in name:
        role = "experts-down" if kind == "ffn_down" else "experts-up"
    else:
        role = "ffn" if kind.startswith("ffn") else "other"
    return f"{layer_of(name)}-{role}" if layer_of(name) >= 0 else role


def _options(tensors: Sequence[Tensor], types: Sequence[str], entries: Collection[str]) -> tuple[Option, ...]:
    found: dict[tuple[str, ...], Option] = {}
    for wanted in types:
        dtypes = tuple(fallback(wanted, tensor.row) for tensor in tensors)
        if any(d in NEEDS_IMATRIX and t.name not in entries for t, d in zip(tensors, dtypes, strict=True)):
            continue
        nbytes = sum(padded(nbytes_of(d, t.shape), DEFAULT_ALIGNMENT) for t, d in zip(tensors, dtypes, strict=True))
        found.setdefault(dtypes, Option(wanted, dtypes, nbytes))
    return tuple(sorted(found.values(), key=lambda o: -o.nbytes))


def label(groups: Sequence[Group], picks: Sequence[int]) -> str:
    """The file type that carries most of the bytes."""
    carried: dict[str, int] = {}
    for group, pick in zip(groups, picks, strict=True):
        for tensor, dtype in zip(group.tensors, group.options[pick].dtypes, strict=True):
            carried[dtype] = carried.get(dtype, 0) + nbytes_of(dtype, tensor.shape)
    most = max(sorted(carried), key=lambda kind: carried[kind])
    most = _LABELS.get(most, most)
    return most if most in FILE_TYPES else "Q8_0"


def tier_of(name: str, groups: Sequence[Group], picks: Sequence[int]) -> Tier:
    """The choice as a tier."""
    imatrix: Literal["use", "never"] = "use"
    return Tier(name=name, file_type=label(groups, picks), imatrix=imatrix, sweep=False)


def overrides_of_mix(groups: Sequence[Group], picks: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """A --tensor-type line for every tensor."""
    return tuple(
        line for group, pick in zip(groups, picks, strict=True) for line in group.overrides(group.options[pick].wanted)
    )
