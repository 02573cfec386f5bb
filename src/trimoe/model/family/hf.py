"""Section [hf]: tensors on the expert axis in Hugging Face checkpoints, and how the router uses them.

Invariant: the scopes of a family are closed. A tensor inside one that is neither a role nor listed as untouched is
refused, so an unknown companion (a scale, a packed weight) cannot pass a cut unsliced.
"""

import copy
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec import field

from trimoe.io.datafile import Data

_DIMENSION = re.compile(r"[1-9]\d*|\*|([1-9]\d*)?[EIH]|[IH]/[1-9]\d*")
_NUMBER = re.compile(r"(?<![^.])(?:\d+|\{[LE]\})(?![^.])")


def form(name: str) -> str:
    """A tensor name with every number between dots (or `{L}`, `{E}`) replaced by #; equal for tensors of one role."""
    return _NUMBER.sub("#", name)


class Role(Data, frozen=True, kw_only=True):
    """One tensor of a layer that is cut along the experts, or one per expert when `{E}` is in its name.

    `shape` names the dimensions: E experts, I expert width, H hidden size, multiples and parts of them (2I, I/32),
    numbers, `*` unchecked. The position of E is the axis that is cut; ["E", "H", "2I"] is a transposed stack.
    """

    tensor: str
    shape: tuple[str, ...]
    optional: bool = False
    """May be absent (then for every expert of a layer)."""
    selects: bool = False
    """Added to the router's scores before the top-k, not to the weights."""
    scales: bool = False
    """One value per expert that multiplies its weight after the choice."""
    also: tuple[str, ...] = ()
    """Other names of the tensor; the one that a checkpoint has is used."""
    interleaved: bool = False
    """Along 2I, gate and up alternate; else all of gate comes first."""

    def named(self, prefix: str, forms: set[str]) -> "Role":
        """This role under the first of its names that is in `forms` after `prefix`; itself if none is."""
        name = next((n for n in (self.tensor, *self.also) if form(prefix + n) in forms), self.tensor)
        return self if name == self.tensor else msgspec.structs.replace(self, tensor=name)

    @property
    def per_expert(self) -> bool:
        """Whether there is one tensor per expert, renumbered when cut."""
        return "{E}" in self.tensor

    @property
    def axis(self) -> int:
        """Position of the expert axis in a stacked tensor."""
        return 0 if self.per_expert else self.shape.index("E")

    @property
    def width_axis(self) -> int | None:
        """Position of the axis over an expert's neurons; None if the tensor has none."""
        return next((i for i, text in enumerate(self.shape) if "I" in text), None)

    def __post_init__(self) -> None:
        for text in self.shape:
            if not _DIMENSION.fullmatch(text):
                raise ValueError(f"dimension {text!r} is not E, I, H, a multiple such as 2I, I/32, a number, or *")
        if self.shape.count("E") + self.tensor.count("{E}") != 1:
            raise ValueError(f"{self.tensor} needs exactly one of E in shape and {{E}} in the name")


class GroupKeys(Data, frozen=True, kw_only=True):
    """Keys of config.json for routing in groups (see `model.groups`)."""

    count: str
    """Number of groups; null or 1: none."""
    assumed: int
    """What transformers assumes where config.json lacks `count`."""
    chosen: str
    """Number of groups used for a token."""
    chosen_assumed: int = 1
    """What transformers assumes where config.json lacks `chosen`."""
    scored: int = 1
    """How many of its best experts make a group's score."""
    when: dict[str, str] = field(default_factory=dict)
    """Keys and values without which there are no groups, whatever `count` says."""


class ConfigKeys(Data, frozen=True, kw_only=True):
    """Names of keys in config.json, looked up in text_config first, then at the top level."""

    num_layers: str
    num_experts: str
    top_k: str
    hidden: str | None = None
    expert_width: str | None = None
    num_experts_also: tuple[str, ...] = ()
    """Other names of the expert count, as other versions of transformers write it."""
    top_k_also: tuple[str, ...] = ()
    """Other names of the top-k."""
    expert_width_also: tuple[str, ...] = ()
    """Other names of the expert width, for models without the first."""
    groups: GroupKeys | None = None
    """How experts are routed in groups, if they may be."""


class Narrow(Data, frozen=True, kw_only=True):
    """That experts of this family can be made narrower: `expert_width` of config.json is the width of nothing else."""

    shared_count: str | None = None
    """The key that, times `expert_width`, is the width of the shared experts; it grows as the width shrinks."""


class Routing(Data, frozen=True, kw_only=True):
    """How the router turns logits into chosen experts and their weights."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    """Turns logits into scores; the top-k of the scores (plus the roles with `selects`) are chosen."""
    weight_on: Literal["output", "input"] = "output"
    """What the weight multiplies: an expert's output, or the token before it enters the expert."""


Roles = dict[str, Role]


class HfTensors(Data, frozen=True, kw_only=True, dict=True):
    """Section [hf] of a family file; families/gemma4.toml explains each key."""

    layer_prefixes: tuple[str, ...]
    draft_prefix: str | None = None
    scopes: tuple[str, ...]
    untouched: tuple[str, ...] = ()
    dense_layer: str | None = None
    shared_down: str | None = None
    """Last matrix of the FFN that runs beside the experts for every token; None in families without one."""
    shared_gain: str | None = None
    """Gain of the norm directly after that FFN. The norm undoes any factor before it."""
    routed_gain: str | None = None
    """Gain of the norm directly after the sum of the routed experts' outputs, apart from any other FFN."""
    config: ConfigKeys
    routing: Routing = Routing()
    narrow: Narrow | None = None
    roles: Roles = field(default_factory=dict)
    layouts: dict[str, Roles] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prefixes = (*self.layer_prefixes, *((self.draft_prefix,) if self.draft_prefix else ()))
        if any(prefix.count("{L}") != 1 for prefix in prefixes):
            raise ValueError("each of layer_prefixes and draft_prefix needs {L} once")
        if common := sorted(self.roles.keys() & {name for roles in self.layouts.values() for name in roles}):
            raise ValueError(f"role {common[0]} is both in [hf.roles] and in a layout")
        if any(not any(not role.optional for role in roles.values()) for roles in self.layouts.values()):
            raise ValueError("a layout needs a required tensor of its own, or it cannot be recognised")
        for roles in self.variants():
            loose = [n for r in roles.values() for n in (r.tensor, *r.also) if not n.startswith(self.scopes)]
            if loose or all(r.optional for r in roles.values()):
                raise ValueError(f"roles must lie inside scopes and one must be required; outside: {loose}")

    @property
    def scales(self) -> tuple[str, ...]:
        """Roles of one value per expert that multiply the weights after the choice."""
        return tuple(name for name, role in self.roles.items() if role.scales)

    def variants(self) -> list[Roles]:
        """The roles of each layout on disk: those of the layout itself and those common to all."""
        of_layouts = {name for roles in self.layouts.values() for name in roles}
        common = {name: role for name, role in self.roles.items() if name not in of_layouts}
        return [{**roles, **common} for roles in self.layouts.values()] or [common]

    def for_config(self, config: Mapping[str, Any]) -> "HfTensors":
        """These tensors with `config.num_experts` set to the name that this config.json uses."""
        scopes = [scope for scope in (config.get("text_config"), config) if isinstance(scope, dict)]
        names = (self.config.num_experts, *self.config.num_experts_also)
        name = next((n for scope in scopes for n in names if n in scope), names[0])
        tops = (self.config.top_k, *self.config.top_k_also)
        top_k = next((n for scope in scopes for n in tops if n in scope), tops[0])
        widths = (self.config.expert_width, *self.config.expert_width_also)
        width = next((n for n in widths for scope in scopes if n in scope), widths[0])
        changed = msgspec.structs.replace(self.config, num_experts=name, top_k=top_k, expert_width=width)
        return self._with("config", changed)

    def recognise(self, forms: set[str]) -> tuple["HfTensors", str] | None:
        """(these tensors with the roles of the layout in `forms`, the layer prefix); None if no layout matches.

        `forms` are the `form` of every tensor name of a checkpoint.
        """
        for prefix in self.layer_prefixes:
            for roles in self.variants():
                named = {name: role.named(prefix, forms) for name, role in roles.items()}
                if all(form(prefix + role.tensor) in forms for role in named.values() if not role.optional):
                    return self._with("roles", named), prefix
        return None

    def with_score(self, score: Literal["softmax", "sigmoid"]) -> "HfTensors":
        """A copy with another score function, for a router that does not use the family's."""
        return self._with("routing", msgspec.structs.replace(self.routing, score=score))

    def without_assumed_groups(self) -> "HfTensors":
        """A copy that routes in groups only if config.json says so: transformers' default belongs to its own types."""
        groups = self.config.groups
        if groups is None:
            return self
        plain = msgspec.structs.replace(groups, assumed=1, chosen_assumed=1)
        return self._with("config", msgspec.structs.replace(self.config, groups=plain))

    def _with(self, name: str, value: object) -> "HfTensors":
        """A changed copy without the checks, which are about what a file says."""
        changed = copy.copy(self)
        msgspec.structs.force_setattr(changed, name, value)
        return changed

    @cached_property
    def _untouched_forms(self) -> frozenset[str]:
        return frozenset(map(form, self.untouched))

    def stray(self, rest: str) -> bool:
        """Whether a tensor's name after the layer prefix lies in a scope and is not declared untouched."""
        return rest.startswith(self.scopes) and form(rest) not in self._untouched_forms
