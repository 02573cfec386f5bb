"""Model families as data: one TOML file per family in `archs/`, validated on load, unknown keys refused.

A family says where its layers are, which tensors carry the expert axis and which config keys count experts. Nothing
else in trimoe knows a family's name. Families are recognised by their tensor names, not by a class name.
"""

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trimoe.errors import CheckpointError


class Role(BaseModel):
    """One tensor (or, with `per_expert`, one tensor per expert) of a layer that is cut along the experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tensor: str
    axis: int = 0
    per_expert: bool = False
    optional: bool = False


class ConfigKeys(BaseModel):
    """Names of the counting keys in config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_layers: str
    num_experts: str
    top_k: str


class Arch(BaseModel):
    """A family: see archs/gemma4.toml for the meaning of each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    model_types: tuple[str, ...]
    layer_prefixes: tuple[str, ...]
    config: ConfigKeys
    roles: dict[str, Role]

    def prefix(self, names: set[str]) -> str | None:
        """The layer prefix under which this family's required expert tensors exist in `names`, or None."""
        required = [role.tensor for role in self.roles.values() if not role.optional]
        for prefix in self.layer_prefixes:
            if all(any(_matches(prefix + tensor, name) for name in names) for tensor in required):
                return prefix
        return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{L\}", r"(\d+)").replace(r"\{E\}", r"(\d+)"))


def _matches(template: str, name: str) -> bool:
    return _pattern(template).fullmatch(name) is not None


def parse_arch(text: str, source: str) -> Arch:
    """A family from TOML text; `CheckpointError` names the file and the wrong key."""
    try:
        return Arch.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as exc:
        raise CheckpointError(f"family file {source} is not valid", actual=str(exc)[:500]) from exc


@cache
def all_archs() -> tuple[Arch, ...]:
    """Every shipped family, by file name."""
    folder = resources.files("trimoe.model") / "archs"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(parse_arch(f.read_text(), f.name) for f in files)


def detect(names: set[str], config: dict[str, Any]) -> tuple[Arch, str]:
    """The family and layer prefix of a checkpoint. Raises `CheckpointError` for dense or unknown models."""
    kinds = {config.get("model_type"), (config.get("text_config") or {}).get("model_type")}
    for arch in all_archs():
        prefix = arch.prefix(names)
        if prefix is not None and kinds & set(arch.model_types):
            return arch, prefix
    routed = sorted(n for n in names if "expert" in n)
    raise CheckpointError(
        "this checkpoint has no experts that trimoe knows" if routed else "this is a dense model: no expert tensors",
        expected="a mixture of experts of one of: " + ", ".join(a.name for a in all_archs()),
        actual=f"model_type {config.get('model_type')!r}" + (f", tensor {routed[0]}" if routed else ""),
        remedy="add a file to model/archs for a new family" if routed else "there is nothing to prune in it",
    )
