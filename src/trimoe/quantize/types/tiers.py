"""Tiers as data: what each name of a quantized file stands for, from tiers.toml."""

from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, Literal

from trimoe.errors import BadInput, Refused, UsageError
from trimoe.io.datafile import Data, convert, parse
from trimoe.quantize.types.tensor_types import FILE_TYPES, Request


class LayerTypes(Data, frozen=True, kw_only=True):
    """Types of a ContribDynamic tier: of FFN tensors by the rank of their layer, and of attention in every layer."""

    top: str
    mid: str
    low: str
    attention: str


class Tier(Data, frozen=True, kw_only=True):
    """One tier of tiers.toml."""

    name: str
    file_type: str
    imatrix: Literal["use", "never"]
    sweep: bool = True
    """Part of the default ladder."""
    token_embedding: str | None = None
    output: str | None = None
    dynamic: LayerTypes | None = None
    warning: str | None = None
    broken: str | None = None

    def request(self, overrides: tuple[tuple[str, str], ...] = (), *, imatrix: bool) -> Request:
        """The request to llama-quantize. `imatrix` says whether there is one; the tier decides whether it is used."""
        return Request(self.file_type, overrides, self.token_embedding, self.output, imatrix and self.imatrix == "use")


class _TierFile(Data, frozen=True, kw_only=True):
    tier: dict[str, dict[str, Any]]


@cache
def all_tiers() -> dict[str, Tier]:
    """Every tier by name, best first as in the file."""
    text = (resources.files("trimoe.quantize.types") / "tiers.toml").read_text(encoding="utf-8")
    return parse_tiers(text, "tiers.toml")


def parse_tiers(text: str, source: str) -> dict[str, Tier]:
    """Tiers from TOML text. Raises `BadInput` naming the wrong key."""
    what = f"tier file {source}"
    file = convert(parse(text, what, "toml"), _TierFile, what)
    tiers = {name: convert({"name": name, **body}, Tier, f"{what}: tier {name}") for name, body in file.tier.items()}
    for tier in tiers.values():
        if tier.file_type not in FILE_TYPES:
            raise BadInput(
                f"{what}: tier {tier.name} has an unknown file type",
                expected=", ".join(FILE_TYPES),
                actual=tier.file_type,
                remedy="correct the file",
            )
    return tiers


def find_tiers(names: list[str]) -> list[Tier]:
    """The tiers of these names, in the order given. Raises `UsageError` for unknown, `Refused` for broken ones."""
    known = all_tiers()
    for name in names:
        if name not in known:
            near = get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"there is no tier {name}",
                expected=", ".join(known),
                actual=name,
                remedy=f"{hint}`trimoe plan MODEL --table` shows all tiers and their sizes",
            )
        if (reason := known[name].broken) is not None:
            raise Refused(
                f"tier {name} cannot be made: {reason}",
                expected="another tier",
                actual=name,
                remedy=f"nearest working ones: {', '.join(_near(name))}",
            )
    if len(set(names)) < len(names):
        raise UsageError(
            "a tier is named twice", expected="each tier once", actual=", ".join(names), remedy="leave out the copy"
        )
    return [known[name] for name in names]


def default_ladder() -> list[Tier]:
    """The tiers of the default sweep."""
    return [tier for tier in all_tiers().values() if tier.sweep and tier.broken is None]


def _near(name: str) -> list[str]:
    base = all_tiers()[name].file_type
    return [tier.name for tier in all_tiers().values() if tier.broken is None and tier.file_type == base] or [base]
