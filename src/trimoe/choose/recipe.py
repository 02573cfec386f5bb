"""Recipes as data: one TOML file each, and how a recipe becomes numbers for a model of any size.

Invariant: unknown keys are refused. Counts are written as a whole number, or as a share "a/b" that is scaled to the
model and rounded down: "16/128" protects 16 of 128 experts, 4 of 32. Shares of `floor.clamp` are of the kept experts,
all others of all experts. `drop` is the one count that is rounded up, because the kept share is rounded down: "30/128"
keeps 98 of 128, 24 of 32.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from trimoe.errors import RecipeError
from trimoe.io import datafile
from trimoe.io.datafile import Data

Count = int | str
"""A whole number, or a share "a/b"."""
Criterion = Literal["contribution", "wnorm", "frequency", "reap", "ean", "recon", "random"]
Aggregate = Literal["max", "sum", "mean", "lp4", "softmax_t4", "second", "top3mean", "geomean"]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_OTHER = "\0"  # a character that occurs in no class name and no pattern
_REMEDY = "see docs/reference/recipes.md"


def _require_count(name: str, value: Count) -> None:
    """Raise `ValueError` unless `value` is a count."""
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{name}: a count is not negative, {value} is")
        return
    numerator, slash, denominator = value.partition("/")
    if not (slash and numerator.isdecimal() and denominator.isdecimal() and int(denominator)):
        raise ValueError(f'{name}: {value!r} is not a whole number or a share "a/b"')
    if int(numerator) > int(denominator):
        raise ValueError(f"{name}: a share is at most 1, {value} is more")


def _require_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not a finite number")


def resolve(count: Count, whole: int) -> int:
    """A count as a number: itself, or the share of `whole` rounded down."""
    return count if isinstance(count, int) else int(Fraction(count) * whole)


def kept(drop: Count | Fraction, experts: int) -> int:
    """Experts that remain of `experts`; the kept share is rounded down."""
    return experts - drop if isinstance(drop, int) else int((1 - Fraction(drop)) * experts)


def class_matches(class_name: str, pattern: str) -> bool:
    """Whether a shell-style pattern matches a class; `code` also matches `generic_code`."""
    return fnmatchcase(class_name, pattern) or class_name == f"generic_{pattern}"


def weight_for(class_name: str, weights: Mapping[str, float]) -> float | None:
    """Weight of a class; None if nothing matches. The order of `weights` does not matter: maps store them sorted.

    The class's own name takes precedence over `code` for `generic_code`, and both over patterns. Among patterns the
    narrowest one applies: the one that the others cover entirely (`targeted_lcb*` before `targeted_*` before `*`).
    Raises `RecipeError` for patterns of different weight neither of which covers the other.
    """
    for name in (class_name, class_name.removeprefix("generic_")):
        if name in weights:
            return weights[name]
    found = [p for p in weights if fnmatchcase(class_name, p)]
    narrowest = sorted(p for p in found if not any(_covers(p, q) and not _covers(q, p) for q in found))
    if len({weights[p] for p in narrowest}) > 1:
        raise RecipeError(
            f"class {class_name} has no single weight",
            expected="one weight, or one pattern inside the other",
            actual=", ".join(f"{p} = {weights[p]:g}" for p in narrowest),
            remedy=f"give the weight of {class_name} by its name",
        )
    return weights[narrowest[0]] if narrowest else None


def _covers(wide: str, narrow: str) -> bool:
    """Whether pattern `wide` matches everything that `narrow` matches. A wrong True is impossible, a wrong False not.

    Each star of `narrow` stands for any text. Two texts are tried: the empty one, and one that is longer than `wide`
    and made of a character that `wide` lacks, so that only a star of `wide` can match it. Patterns with brackets count
    as not covered.
    """
    if wide == narrow or wide == "*":
        return True
    if "[" in wide or "[" in narrow or narrow.count("*") > 7:
        return False
    pieces = narrow.replace("?", _OTHER).split("*")
    fillings = product(("", _OTHER * (len(wide) + 1)), repeat=len(pieces) - 1)
    return all(fnmatchcase("".join(map("".join, zip(pieces, (*fill, ""), strict=True))), wide) for fill in fillings)


class Floor(Data, frozen=True, kw_only=True):
    """Per layer, protect the top experts by pooled score of the base statistics (section 5 of the protocol)."""

    clamp: tuple[Count, Count]
    exclude: list[str] = msgspec.field(default_factory=lambda: ["targeted_*"])

    def __post_init__(self) -> None:
        for value in self.clamp:
            _require_count("clamp", value)


class Outliers(Data, frozen=True, kw_only=True):
    """What is done with cells whose wnorm is not finite or above `limit`: imputed, or ranked as they are (`keep`).

    `keep` exists to reproduce maps of the reference implementation. It still refuses values that are not finite, and
    the map records how many cells beyond the limit it ranked.
    """

    mode: Literal["median", "zero", "drop", "keep"]
    limit: Annotated[float, msgspec.Meta(gt=0)]

    def __post_init__(self) -> None:
        _require_finite("limit", self.limit)


class Recipe(Data, frozen=True, kw_only=True):
    """Everything that turns statistics into a map. Class weights: see `weight_for`; a class without one is left out."""

    name: str
    description: str = ""
    criterion: Criterion = "contribution"
    alpha: float = 2.0
    positions: list[Literal["text", "prompt", "own", "recorded"]] = msgspec.field(default_factory=list)
    """Kinds of position whose sums are used; empty means all."""
    pooled: bool = False
    normalize: Literal["none", "mean", "rank"] = "rank"
    aggregate: Aggregate = "max"
    exclude: list[str] = msgspec.field(default_factory=list)
    class_weights: dict[str, NotNegative] = msgspec.field(default_factory=lambda: {"*": 1.0})
    breadth_bonus: NotNegative = 0.0
    drop: Count = "30/128"
    protect_top: Count = 0
    floor: Floor | None = None
    outliers: Outliers | None = None
    class_min: dict[str, Count] = msgspec.field(default_factory=dict)
    balance: Literal["groups", "none"] = "groups"
    """Whether groups of experts, where the model routes in groups, lose equally many."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        for name in ("drop", "protect_top"):
            _require_count(name, getattr(self, name))
        for pattern, least in self.class_min.items():
            _require_count(f"class_min.{pattern}", least)
        for name in ("alpha", "breadth_bonus"):
            _require_finite(name, getattr(self, name))
        for pattern, weight in self.class_weights.items():
            _require_finite(f"class_weights.{pattern}", weight)

    def weight_of(self, class_name: str) -> float | None:
        """Weight of a class, or None when it is excluded or nothing matches it. Raises as `weight_for`."""
        if any(class_matches(class_name, p) for p in self.exclude):
            return None
        return weight_for(class_name, self.class_weights)


def parse_recipe(text: str, source: str) -> Recipe:
    """A recipe from TOML text; `RecipeError` names the file and key."""
    return validated(datafile.parse(text, f"recipe {source}", "toml", error=RecipeError, remedy=_REMEDY), source)


def validated(data: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from plain data; `RecipeError` names `source` and the key."""
    return datafile.convert(data, Recipe, f"recipe {source}", error=RecipeError, remedy=_REMEDY)


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON data, every field included: what a map records, and what `validated` reads again."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(recipe))
    return data


def names() -> list[str]:
    """Shipped recipes."""
    folder = resources.files("trimoe.choose") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name, or a recipe file by path. `random-7` is recipe `random` with seed 7.

    Raises `RecipeError`.
    """
    name = str(name)
    base, _, seed = name.partition("-")
    if base == "random" and seed.isdecimal():
        return msgspec.structs.replace(load_recipe("random"), seed=int(seed), name=name)
    path = Path(name)
    if name in names():
        file = resources.files("trimoe.choose") / "recipes" / f"{name}.toml"
    elif path.suffix == ".toml" and path.is_file():
        file = path
    else:
        raise RecipeError(
            f"unknown recipe {name}",
            expected=", ".join(names()),
            actual=name,
            remedy="name a shipped recipe or give an existing .toml file",
        )
    return datafile.load(Recipe, file, f"recipe {name}", error=RecipeError, remedy=_REMEDY)
