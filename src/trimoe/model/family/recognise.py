"""Finding the family of a checkpoint from its tensor names and config.json.

A known `model_type` belongs to one family. An unknown one is read as a family whose tensor names and configuration keys
it has, see `alike`; what makes such a reading safe is checked where the checkpoint is opened.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimoe.errors import CheckpointError
from trimoe.model.family.file import Family, candidates, families
from trimoe.model.family.hf import HfTensors, form


@dataclass(frozen=True)
class Recognised:
    """The family of a checkpoint. `hf` has the roles of the layout that was found, `prefix` the layers' names."""

    family: Family
    hf: HfTensors
    prefix: str
    read_as: str | None = None
    """An unknown `model_type` that is read as this family; None for a type that the family lists."""

    @property
    def note(self) -> str | None:
        """What to say about an unknown `model_type`, or None."""
        if self.read_as is None:
            return None
        return (
            f"read as {self.family.name}; model_type {self.read_as} is unknown, but its expert tensors and the keys of "
            "config.json are those of this family. `trimoe certify` shows whether the routing is the same, too"
        )


_SCORE_KEY = re.compile(r"scor|router|gating|moe")
_GROUP_KEY = re.compile(r"n_group|num_.*groups?|groups?_.*|.*_groups?")
_COUNT = re.compile(r"^(n|num|moe_num|nb)_(routed_|local_)?experts?$|^(moe_)?num_(routed_|local_)?experts?$")
_OF_EXPERTS = re.compile(r"expert|rout|moe|topk|top_k")


def kinds_of(config: Mapping[str, Any]) -> list[str]:
    """The values of `model_type`: that of text_config, if there is one, then that of the whole model."""
    return [str(scope.get("model_type")) for scope in _scopes(config)]


def _scopes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [scope for scope in (config.get("text_config"), config) if isinstance(scope, Mapping)]


def alike(names: set[str], config: Mapping[str, Any]) -> Iterator[Recognised]:
    """Families whose expert tensors and configuration keys a checkpoint of an unknown `model_type` has, best first.

    Best is the family with most of its tensors in the checkpoint (roles, dense layers, shared experts), then one that
    assumes no routing in groups, then the one whose name the model's type or class resembles most: families may share
    all names. How logits become scores is read from config.json where it says so. That the weight multiplies an
    expert's output is assumed, as in almost every family. Nothing is yielded for a type that a family lists: a wrong
    layout of a known type is no reason to read it as another family.
    """
    kinds = kinds_of(config)
    if any(set(kinds) & set(family.model_types) for family in families()):
        return
    forms = set(map(form, names))
    found = []
    for family in families():
        recognised = family.hf.recognise(forms) if family.hf is not None else None
        if recognised is not None and recognised[0].routing.weight_on == "output" and _has_keys(recognised[0], config):
            hf, prefix = recognised
            optional = [tensor for tensor in (hf.dense_layer, hf.shared_down) if tensor is not None]
            has = [form(prefix + tensor) in forms for tensor in (*(r.tensor for r in hf.roles.values()), *optional)]
            rank = (-sum(has), _assumes_groups(hf, config), -_resemblance(family, config), family.name)
            found.append((rank, family, hf, prefix))
    score = _score(config)
    for _, family, hf, prefix in sorted(found, key=lambda one: one[0]):
        # Without added terms, every scoring function prefers the same experts.
        if score is not None and any(role.selects for role in hf.roles.values()):
            hf = hf.with_score(_known_score(score, family))
        hf = hf.without_assumed_groups()
        yield Recognised(family, hf, prefix, kinds[0])


def _assumes_groups(hf: HfTensors, config: Mapping[str, Any]) -> bool:
    """Whether the family assumes routing in groups where config.json does not mention them."""
    keys = hf.config.groups
    return keys is not None and keys.assumed != 1 and not any(keys.count in scope for scope in _scopes(config))


def _resemblance(family: Family, config: Mapping[str, Any]) -> int:
    """Letters that a family's name has in common with the beginning of the model's class or type."""
    classes = config.get("architectures")
    names = [*kinds_of(config), *(classes if isinstance(classes, list) else ())]
    own = _letters(family.name)
    return max(_common(own, _letters(str(name))) for name in names)


def _common(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _known_score(score: str, family: Family) -> Literal["softmax", "sigmoid"]:
    """The scoring function, if routers with added terms are understood for it. Raises `CheckpointError`."""
    if score == "softmax":
        return "softmax"
    if score == "sigmoid":
        return "sigmoid"
    raise CheckpointError(
        f"the router scores experts with {score}",
        expected="softmax or sigmoid",
        actual=f"expert tensors like those of {family.name}, with a correction that is added to the scores",
        remedy="trimoe does not know this router; describe the family in a file (docs/howto/add-a-family.md)",
    )


def _has_keys(hf: HfTensors, config: Mapping[str, Any]) -> bool:
    counts = (hf.config.num_experts, *hf.config.num_experts_also)
    present = {key for scope in _scopes(config) for key, value in scope.items() if type(value) is int}
    tops = {hf.config.top_k, *hf.config.top_k_also}
    return hf.config.num_layers in present and bool(present & tops) and bool(present & set(counts))


def _score(config: Mapping[str, Any]) -> str | None:
    """The scoring function that config.json names, such as scoring_func = "sigmoid"; None if it names none."""
    for scope in _scopes(config):
        for key, value in scope.items():
            if isinstance(value, str) and _SCORE_KEY.search(key) and re.search("softmax|sigmoid|softplus", value):
                return value
    return None


def _group_keys(hf: HfTensors) -> tuple[str, ...]:
    return () if hf.config.groups is None else (hf.config.groups.count, hf.config.groups.chosen)


def unknown_groups(hf: HfTensors, config: Mapping[str, Any]) -> str | None:
    """A key of config.json, with its value, that seems to group experts and that the family does not know; or None."""
    for scope in _scopes(config):
        for key, value in scope.items():
            grouped = (_GROUP_KEY.fullmatch(key) and _OF_EXPERTS.search(key)) or key == "n_group"
            if grouped and key not in _group_keys(hf) and type(value) is int and value > 1 and key != "topk_group":
                return f"{key} = {value}"
    return None


def recognise(names: set[str], config: Mapping[str, Any], among: Sequence[Family] | None = None) -> Recognised:
    """The family of a checkpoint with these tensor names. Raises `CheckpointError` for dense or unknown models.

    The tensor names decide about the layout; `model_type` only tells families with the same names apart.
    """
    forms = set(map(form, names))
    kinds = kinds_of(config)
    for family in candidates(kinds) if among is None else among:
        if family.hf is not None and set(kinds) & set(family.model_types):
            found = family.hf.recognise(forms)
            if found is not None:
                return Recognised(family, *found)
    routed = sorted(name for name in names if "expert" in name)
    counted = _counted(config)
    known = [family.name for family in (families() if among is None else among) if family.hf is not None]
    if not routed and counted is None:
        raise CheckpointError(
            "this is a dense model: no expert tensors",
            expected="a mixture of experts of one of: " + ", ".join(known),
            actual=f"model_type {' in '.join(kinds)}",
            remedy="there is nothing to prune",
        )
    listed = any(set(kinds) & set(family.model_types) for family in families())
    raise CheckpointError(
        "this checkpoint has no experts that trimoe knows",
        expected="a mixture of experts of one of: " + ", ".join(known),
        actual=f"model_type {' in '.join(kinds)}"
        + (f", {counted} in config.json" if counted else "")
        + (f", tensor {routed[0]}" if routed else ", no tensor with `expert` in its name"),
        remedy="the model type is known, but this layout of its tensors is not: convert it to the published one"
        if listed
        else "describe the family in a file (docs/howto/add-a-family.md)",
    )


def _counted(config: Mapping[str, Any]) -> str | None:
    """The key and value with which config.json counts more than one expert, or None."""
    for scope in _scopes(config):
        for key, value in scope.items():
            if "expert" in key and _COUNT.search(key) and type(value) is int and value > 1:
                return f"{key} = {value}"
    return None
