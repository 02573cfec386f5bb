"""Tiers as data: what each name of a quantized file stands for. See tiers.toml; unknown keys are refused."""

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.quantize.types.tensor_types import FILE_TYPES, Request


class Mix(BaseModel):
    """Types of a ContribDynamic tier: of the layers' FFN tensors by rank, and of attention in every layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    top: str
    mid: str
    low: str
    attention: str


class Tier(BaseModel):
    """One tier of tiers.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    file_type: str
    imatrix: Literal["use", "never"]
    sweep: bool = True
    """Part of the default ladder."""
    token_embedding: str | None = None
    output: str | None = None
    dynamic: Mix | None = None
    warning: str | None = None
    broken: str | None = None

    def request(self, overrides: tuple[tuple[str, str], ...] = (), *, imatrix: bool) -> Request:
        """What llama-quantize is asked; `imatrix` says whether there is one, the tier whether it is used."""
        return Request(self.file_type, overrides, self.token_embedding, self.output, imatrix and self.imatrix == "use")


@cache
def all_tiers() -> dict[str, Tier]:
    """Every tier by name, best first as in the file."""
    text = (resources.files("trimoe.quantize.types") / "tiers.toml").read_text(encoding="utf-8")
    return parse_tiers(text, "tiers.toml")


def parse_tiers(text: str, source: str) -> dict[str, Tier]:
    """Tiers from TOML text. Raises `BadInput` naming the wrong key."""
    try:
        data = tomllib.loads(text)
        if set(data) != {"tier"}:
            raise ValueError(f"only [tier.NAME] tables are known, found {', '.join(sorted(data)) or 'nothing'}")
        tiers = {name: Tier.model_validate({"name": name, **body}) for name, body in data["tier"].items()}
        for tier in tiers.values():
            if tier.file_type not in FILE_TYPES:
                raise ValueError(f"{tier.name}: file type {tier.file_type} is unknown")
    except (tomllib.TOMLDecodeError, ValidationError, ValueError) as exc:
        raise BadInput(
            f"tier file {source} is not valid",
            expected="the keys of tiers.toml",
            actual=str(exc)[:400],
            remedy="correct the file",
        ) from exc
    return tiers


def find_tiers(names: list[str]) -> list[Tier]:
    """The tiers of these names, in the order given. Raises `UsageError` for unknown, `Refused` for broken ones."""
    known = all_tiers()
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no tier {name}",
                expected=", ".join(known),
                actual=name,
                remedy="choose from these; `trimoe plan MODEL --table` shows their sizes",
            )
        if (reason := known[name].broken) is not None:
            raise Refused(
                f"tier {name} cannot be made: {reason}",
                expected="another tier",
                remedy=f"nearest working ones: {', '.join(_near(name))}",
            )
    if len(set(names)) < len(names):
        raise UsageError("a tier is named twice", expected="each once", actual=", ".join(names))
    return [known[name] for name in names]


def default_ladder() -> list[Tier]:
    """The tiers of the default sweep."""
    return [tier for tier in all_tiers().values() if tier.sweep and tier.broken is None]


def _near(name: str) -> list[str]:
    base = all_tiers()[name].file_type
    return [tier.name for tier in all_tiers().values() if tier.broken is None and tier.file_type == base] or [base]
