"""Finding the family of a checkpoint from its tensor names and config.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.model.family.file import Family, candidates, families
from trimoe.model.family.hf import HfTensors, form


@dataclass(frozen=True)
class Recognised:
    """The family of a checkpoint. `hf` has the roles of the layout that was found, `prefix` the layers' names."""

    family: Family
    hf: HfTensors
    prefix: str


def recognise(names: set[str], config: Mapping[str, Any], among: Sequence[Family] | None = None) -> Recognised:
    """The family of a checkpoint with these tensor names. Raises `CheckpointError` for dense or unknown models.

    The tensor names decide about the layout; `model_type` only tells families with the same names apart.
    """
    forms = set(map(form, names))
    scopes = [scope for scope in (config.get("text_config"), config) if isinstance(scope, Mapping)]
    kinds = [str(scope.get("model_type")) for scope in scopes]
    for family in candidates(kinds) if among is None else among:
        if family.hf is not None and set(kinds) & set(family.model_types):
            found = family.hf.recognise(forms)
            if found is not None:
                return Recognised(family, *found)
    routed = sorted(name for name in names if "expert" in name)
    known = [family.name for family in (families() if among is None else among) if family.hf is not None]
    raise CheckpointError(
        "this checkpoint has no experts that trimoe knows" if routed else "this is a dense model: no expert tensors",
        expected="a mixture of experts of one of: " + ", ".join(known),
        actual=f"model_type {' in '.join(kinds)}" + (f", tensor {routed[0]}" if routed else ""),
        remedy="describe the family in a file (docs/howto/add-a-family.md)" if routed else "there is nothing to prune",
    )
