"""Model families as data: one TOML file per family in `archs/`, validated on load, unknown keys refused.

A family says where its layers are, which tensors carry the expert axis, in which form they lie on disk, how its router
chooses, and which config keys count experts. Nothing else in trimoe knows a family's name. Families are recognised by
tensor names.
Invariant: the scopes of a family are closed. A tensor inside one that is neither a role nor listed as untouched is
refused, so an unknown companion (a scale, a packed weight) can never pass through a cut unsliced.
"""

import copy
import re
import tomllib
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import msgspec

from trimoe.errors import CheckpointError

_DIMENSION = re.compile(r"[1-9]\d*|\*|([1-9]\d*)?[EIH]")


class Role(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor of a layer that is cut along the experts, or one per expert when `{E}` is in its name.

    `shape` names the dimensions: E experts, I expert width, H hidden size, multiples of them, numbers, `*` unchecked.
    The position of E is the axis that is cut; ["E", "H", "2I"] is a transposed stack.
    """

    tensor: str
    shape: tuple[str, ...]
    optional: bool = False
    """May be absent (then for every expert of a layer)."""
    selects: bool = False
    """Added to the router's scores before the largest are chosen, not to the weights."""

    @property
    def per_expert(self) -> bool:
        """One tensor per expert, renumbered when cut."""
        return "{E}" in self.tensor

    @property
    def axis(self) -> int:
        """Position of the expert axis in a stacked tensor."""
        return 0 if self.per_expert else self.shape.index("E")

    def __post_init__(self) -> None:
        for text in self.shape:
            if not _DIMENSION.fullmatch(text):
                raise ValueError(f"dimension {text!r} is not E, I, H, a multiple such as 2I, a number, or *")
        if self.shape.count("E") + self.tensor.count("{E}") != 1:
            raise ValueError(f"{self.tensor} needs exactly one of E in shape and {{E}} in the name")


class ConfigKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of keys in config.json, looked up in text_config first, then at the top."""

    num_layers: str
    num_experts: str
    top_k: str
    hidden: str | None = None
    expert_width: str | None = None
    num_experts_also: tuple[str, ...] = ()  # other names of the same count, as other versions of transformers wrote it
    groups: dict[str, int] = {}
    """Keys that must be null or 1, because routing in groups cannot be cut exactly; each with the value that
    transformers assumes where config.json does not have it."""


class Routing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the router gets from its logits to the chosen experts and their weights."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    """Scores of the logits; the experts with the largest scores (plus the roles that select) are chosen."""
    weight_on: Literal["output", "input"] = "output"
    """What the weight multiplies: an expert's output, or the token before it enters the expert."""


Roles = dict[str, Role]


class Arch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A family: see archs/gemma4.toml for the meaning of each key."""

    name: str
    follows: tuple[str, ...] = ()
    note: str = ""
    model_types: tuple[str, ...]
    layer_prefixes: tuple[str, ...]
    draft_prefix: str | None = None
    scopes: tuple[str, ...]
    untouched: tuple[str, ...] = ()
    dense_layer: str | None = None
    shared_down: str | None = None
    """Last matrix of the FFN that runs beside the experts for every token; none in families without one."""
    shared_gain: str | None = None
    """Gain of the norm that stands right behind that FFN. A norm undoes any factor before it."""
    config: ConfigKeys
    routing: Routing = Routing()
    roles: Roles = {}
    layouts: dict[str, Roles] = {}

    def __post_init__(self) -> None:
        prefixes = (*self.layer_prefixes, *((self.draft_prefix,) if self.draft_prefix else ()))
        if any(prefix.count("{L}") != 1 for prefix in prefixes):
            raise ValueError("each of layer_prefixes and draft_prefix needs {L} once")
        if twice := sorted(self.roles.keys() & {name for roles in self.layouts.values() for name in roles}):
            raise ValueError(f"{twice[0]} stands in the roles of every layout and of one")
        if any(not any(not role.optional for role in roles.values()) for roles in self.layouts.values()):
            raise ValueError("a layout without a tensor of its own that is required cannot be recognised")
        for roles in self.variants():
            loose = [r.tensor for r in roles.values() if not r.tensor.startswith(self.scopes)]
            if loose or all(r.optional for r in roles.values()):
                raise ValueError(f"roles must lie inside scopes and one be required; outside: {loose}")

    def variants(self) -> list[Roles]:
        """The roles of each way the family lies on disk: those common to all and those of one layout."""
        of_layouts = {name for roles in self.layouts.values() for name in roles}
        common = {name: role for name, role in self.roles.items() if name not in of_layouts}
        return [{**roles, **common} for roles in self.layouts.values()] or [common]

    def for_config(self, config: dict[str, Any]) -> "Arch":
        """This family with `num_experts` set to the name that this config.json uses for it."""
        scopes = [scope for scope in (config.get("text_config"), config) if isinstance(scope, dict)]
        names = (self.config.num_experts, *self.config.num_experts_also)
        name = next((n for scope in scopes for n in names if n in scope), names[0])
        return self._with("config", msgspec.structs.replace(self.config, num_experts=name))

    def recognise(self, forms: set[str]) -> tuple["Arch", str] | None:
        """This family with the roles of the layout in `forms` (see `form`), and the layer prefix; None if it is
        another family."""
        for prefix in self.layer_prefixes:
            for roles in self.variants():
                if all(form(prefix + role.tensor) in forms for role in roles.values() if not role.optional):
                    return self._with("roles", roles), prefix
        return None

    def _with(self, field: str, value: object) -> "Arch":
        """A copy that is not checked again: the checks are about what a file says."""
        changed = copy.copy(self)
        msgspec.structs.force_setattr(changed, field, value)
        return changed

    @cached_property
    def _untouched_forms(self) -> frozenset[str]:
        return frozenset(map(form, self.untouched))

    def stray(self, rest: str) -> bool:
        """Whether a tensor's name after the layer prefix lies in a scope and is not declared untouched."""
        return rest.startswith(self.scopes) and form(rest) not in self._untouched_forms


_NUMBER = re.compile(r"(?<![^.])(?:\d+|\{[LE]\})(?![^.])")


def form(name: str) -> str:
    """A tensor's name with every number between dots (or `{L}`, `{E}`) replaced by #: equal for equal roles."""
    return _NUMBER.sub("#", name)


def parse_arch(text: str, source: str) -> Arch:
    """A family from TOML text; `CheckpointError` names the file and the wrong key."""
    try:
        return msgspec.convert(tomllib.loads(text), Arch)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise CheckpointError(
            f"family file {source} is not valid",
            expected="the keys of archs/gemma4.toml",
            actual=str(exc)[:500],
            remedy="correct the file",
        ) from exc


@cache
def all_archs() -> tuple[Arch, ...]:
    """Every shipped family, by file name."""
    folder = resources.files("trimoe.model") / "families"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(parse_arch(f.read_text(encoding="utf-8"), f.name) for f in files)


def detect(names: set[str], config: dict[str, Any], archs: tuple[Arch, ...] | None = None) -> tuple[Arch, str]:
    """The family and layer prefix of a checkpoint. Raises `CheckpointError` for dense or unknown models.

    The tensor names decide what the layout is; `model_type` only tells families apart that share one.
    """
    archs = all_archs() if archs is None else archs
    forms = set(map(form, names))
    scopes = [scope for scope in (config.get("text_config"), config) if isinstance(scope, dict)]
    kinds = [str(scope.get("model_type")) for scope in scopes]
    for arch in archs:
        if set(kinds) & set(arch.model_types) and (found := arch.recognise(forms)) is not None:
            return found
    routed = sorted(n for n in names if "expert" in n)
    raise CheckpointError(
        "this checkpoint has no experts that trimoe knows" if routed else "this is a dense model: no expert tensors",
        expected="a mixture of experts of one of: " + ", ".join(a.name for a in archs),
        actual=f"model_type {' in '.join(kinds)}" + (f", tensor {routed[0]}" if routed else ""),
        remedy="add a file to model/archs for a new family" if routed else "there is nothing to prune in it",
    )
