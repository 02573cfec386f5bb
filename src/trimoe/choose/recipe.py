"""Recipes as data: one TOML file each, unknown keys refused. How a recipe becomes numbers for a model of any size.

Counts are written as a whole number, or as a share "a/b" which is scaled to the model and rounded down: "16/128"
protects 16 of 128, 4 of 32 experts. Shares of `floor.clamp` are of the kept experts, all others of all experts. `drop`
is the one count that is rounded up, because the kept share is rounded down: "30/128" keeps 98 of 128, 24 of 32.
"""

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trimoe.errors import RecipeError


def _count(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('a count is a whole number or a share "a/b"')
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a count is not negative")
        return value
    numerator, slash, denominator = value.partition("/")
    if not (slash and numerator.isdecimal() and denominator.isdecimal() and int(denominator)):
        raise ValueError('a share is written "a/b"')
    if int(numerator) > int(denominator):
        raise ValueError("a share is at most 1")
    return value


Count = Annotated[int | str, BeforeValidator(_count)]
Criterion = Literal["contribution", "wnorm", "frequency", "reap", "ean", "random"]
Aggregate = Literal["max", "sum", "mean", "lp4", "softmax_t4", "second", "top3mean", "geomean"]
Weight = Annotated[float, Field(ge=0)]
_OTHER = "\0"  # a character that no class name and no pattern has


def resolve(count: int | str, whole: int) -> int:
    """A count as a number: itself, or the share of `whole` rounded down."""
    return count if isinstance(count, int) else int(Fraction(count) * whole)


def kept(drop: int | str | Fraction, experts: int) -> int:
    """Experts that remain of `experts`; a share to drop leaves the rest of them, rounded down."""
    return experts - drop if isinstance(drop, int) else int((1 - Fraction(drop)) * experts)


def class_matches(class_name: str, pattern: str) -> bool:
    """Whether a class is meant by a shell-style pattern; `code` also means `generic_code`."""
    return fnmatchcase(class_name, pattern) or class_name == f"generic_{pattern}"


def weight_for(class_name: str, weights: Mapping[str, float]) -> float | None:
    """Weight of a class; None if nothing matches. The order of `weights` does not matter, as JSON does not keep it.

    The class's own name goes before `code` for `generic_code`, and both before patterns. Of patterns the narrowest
    counts: one that another pattern covers whole (`targeted_lcb*` before `targeted_*` before `*`). Raises `RecipeError`
    for patterns of different weight neither of which covers the other.
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
    """Whether pattern `wide` matches all that `narrow` matches; never wrongly true.

    Each star of `narrow` stands for any text; tried are none and one longer than `wide`, of a character that `wide`
    lacks, so that only a star of `wide` can take it. Patterns with brackets are not looked into.
    """
    if wide == narrow or wide == "*":
        return True
    if "[" in wide or "[" in narrow or narrow.count("*") > 7:
        return False
    pieces = narrow.replace("?", _OTHER).split("*")
    fillings = product(("", _OTHER * (len(wide) + 1)), repeat=len(pieces) - 1)
    return all(fnmatchcase("".join(map("".join, zip(pieces, (*fill, ""), strict=True))), wide) for fill in fillings)


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Floor(_Data):
    """Protect, per layer, the top experts by pooled score of the base statistics; see protocol section 5."""

    clamp: tuple[Count, Count]
    exclude: list[str] = ["targeted_*"]


class Outliers(_Data):
    """What is done with cells whose wnorm is not finite or above `limit`: imputed, or with `keep` ranked as they are.

    `keep` exists to reproduce maps of the reference implementation. It still refuses what is not finite, and the map
    says how many cells it let through.
    """

    mode: Literal["median", "zero", "drop", "keep"]
    limit: float = Field(gt=0)


class Recipe(_Data):
    """Everything that turns statistics into a map. Class weights: see `weight_for`; no match leaves a class out."""

    name: str
    description: str = ""
    criterion: Criterion = "contribution"
    alpha: float = 2.0
    pooled: bool = False
    normalize: Literal["none", "mean", "rank"] = "rank"
    aggregate: Aggregate = "max"
    exclude: list[str] = []
    class_weights: dict[str, Weight] = {"*": 1.0}
    breadth_bonus: float = Field(0.0, ge=0)
    drop: Count = "30/128"
    protect_top: Count = 0
    floor: Floor | None = None
    outliers: Outliers | None = None
    class_min: dict[str, Count] = {}
    seed: int = Field(0, ge=0)

    def weight_of(self, class_name: str) -> float | None:
        """Weight of a class, or None when it is excluded or nothing matches it. Raises as `weight_for`."""
        if any(class_matches(class_name, p) for p in self.exclude):
            return None
        return weight_for(class_name, self.class_weights)


def parse_recipe(text: str, source: str) -> Recipe:
    """A recipe from TOML text; `RecipeError` names the file and key."""
    try:
        return validated(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"recipe {source} is not valid TOML", actual=str(exc)) from exc


def validated(data: dict[str, Any], source: str) -> Recipe:
    """A recipe from plain data; `RecipeError` names `source` and the key."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise RecipeError(
            f"recipe {source}: {'.'.join(map(str, first['loc']))}",
            expected="a known key with a possible value",
            actual=first["msg"],
            remedy="see docs/reference/recipes.md",
        ) from exc


def names() -> list[str]:
    """Shipped recipes."""
    folder = resources.files("trimoe.choose") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a recipe file by path. `random-7` is recipe `random` with seed 7."""
    base, _, seed = name.partition("-")
    if base == "random" and seed.isdecimal():
        return load_recipe("random").model_copy(update={"seed": int(seed), "name": name})
    if name in names():
        file = resources.files("trimoe.choose") / "recipes" / f"{name}.toml"
        return parse_recipe(file.read_text(), name)
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        try:
            return parse_recipe(path.read_text(encoding="utf-8"), name)
        except UnicodeDecodeError as exc:
            raise RecipeError(f"recipe {name} is not text", actual=str(exc)) from exc
    raise RecipeError(
        f"unknown recipe {name}",
        expected=", ".join(names()),
        actual=name,
        remedy="name a shipped recipe or give a .toml file",
    )
