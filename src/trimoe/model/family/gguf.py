"""Section [gguf]: names of expert tensors in GGUF files, where they differ from llama.cpp's standard ones.

The standard names are in model/gguf/expert_names.toml and hold for every architecture without a section of its own.
"""

from functools import cache
from pathlib import Path

from msgspec import field

from trimoe.errors import CheckpointError
from trimoe.io.datafile import Data, load


class GgufNames(Data, frozen=True, kw_only=True):
    """All names of one architecture, after `blk.N.`; gguf/expert_names.toml explains each key."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    refused_model: str | None = None
    router_scale: str | None = None
    """The factors per expert that belong to the router's weight; elsewhere such factors belong to the expert."""

    def __post_init__(self) -> None:
        names = (*self.required, *self.optional, *self.untouched, *self.refused)
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{repeated[0]} is listed more than once")
        if loose := [name for name in names if not self.concerns_experts(name)]:
            raise ValueError(f"{loose[0]} is outside of scope")

    def concerns_experts(self, name: str) -> bool:
        """Whether a tensor's name after `blk.N.` says that it belongs to experts or their router."""
        return any(part in name for part in self.scope)


class GgufSection(Data, frozen=True, kw_only=True):
    """Section [gguf] of a family file. A key that is left out keeps its standard value.

    Three exceptions keep the lists consistent. A family with `required` names inherits no optional ones, except the
    factors beside a weight in NVFP4 (`.scale`, `.input_scale`) where it cuts that weight. Standard names that
    the family cuts or lists as untouched leave the standard `untouched` and `refused` lists.
    """

    required: tuple[str, ...] | None = None
    optional: tuple[str, ...] | None = None
    scope: tuple[str, ...] | None = None
    untouched: tuple[str, ...] = ()
    refused: dict[str, str] | None = None
    refused_model: str | None = None
    router_scale: str | None = None

    def __post_init__(self) -> None:
        self.names()

    def names(self) -> GgufNames:
        """All names of the family's architectures. Raises `ValueError`."""
        standard = standard_names()
        inherited = standard.optional if self.required is None else ()
        required = standard.required if self.required is None else self.required
        optional = inherited if self.optional is None else self.optional
        optional = (*optional, *_companions(required, optional, self.untouched, standard))
        cut = (*(self.required or ()), *optional, *self.untouched)
        refused = standard.refused if self.refused is None else self.refused
        return GgufNames(
            required=required,
            optional=optional,
            scope=standard.scope if self.scope is None else self.scope,
            untouched=(*self.untouched, *(name for name in standard.untouched if name not in cut)),
            refused={name: why for name, why in refused.items() if name not in cut},
            refused_model=self.refused_model,
            router_scale=self.router_scale,
        )


def _companions(
    required: tuple[str, ...], optional: tuple[str, ...], untouched: tuple[str, ...], standard: GgufNames
) -> list[str]:
    """Standard factors of the weights that a family cuts: any family's experts can be stored in NVFP4."""
    listed = {*required, *optional, *untouched}
    weights = [name.removesuffix("weight") for name in (*required, *optional) if name.endswith("_exps.weight")]
    names = [stem + factor for stem in weights for factor in ("scale", "input_scale")]
    return [name for name in names if name in standard.optional and name not in listed]


@cache
def standard_names() -> GgufNames:
    """The names that llama.cpp gives to expert tensors."""
    file = Path(__file__).parents[1] / "gguf" / "expert_names.toml"
    return load(GgufNames, file, "expert_names.toml", error=CheckpointError)
