"""Recipe fields given one by one, as values or as the short texts of the command line, applied to a recipe.

The result is validated as a whole: a text that cannot be parsed or an unknown field is a `UsageError`, a value that the
recipe cannot have a `RecipeError`.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from trimoe.calibrate.stats.positions import REPLIES
from trimoe.choose.recipe import Count, Floor, Outliers, Recipe, class_matches, recipe_data, validated, weight_for
from trimoe.errors import RecipeError, UsageError

FIELDS = tuple(name for name in Recipe.__struct_fields__ if name not in ("name", "description"))
"""Fields of a recipe that can be overridden."""
_NONE = "none"
_OUTLIER_LIMIT = "1e4"


def override(recipe: Recipe, classes: Sequence[str], **fields: Any) -> Recipe:
    """The recipe with the given fields replaced.

    Besides a field's own type, five fields accept short forms: `class_weights` and `class_min` "math=1,code=3", `floor`
    (low, high) or "LO:HI", `outliers` (mode, limit) or "MODE:LIMIT", `positions` "all", "replies" or kinds with commas;
    `floor` and `outliers` also None or "none".
    Class weights are looked up among those given first; the classes that they match are then in the recipe by their
    full names, and all others keep the recipe's weight. Every name must match one of `classes`, because a misspelt one
    would silently change nothing.
    """
    before = recipe_data(recipe)
    data = dict(before)
    for name, value in fields.items():
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=1)
            raise UsageError(
                f"a recipe has no field {name}",
                expected=", ".join(FIELDS),
                actual=name,
                remedy=f"did you mean {near[0]}?" if near else "see docs/reference/recipes.md",
            )
        data[name] = _VALUES[name](value, before) if name in _VALUES else value
    if "class_weights" in fields:
        data["class_weights"] = _weights(recipe, classes, data["class_weights"])
    return recipe if data == before else validated(data, f"{recipe.name} with overrides")


def span(value: Any, option: str) -> tuple[Count, Count]:
    """`LO:HI`, or a pair, as two counts. Raises `UsageError`."""
    if isinstance(value, str):
        low, colon, high = value.partition(":")
        if not (low and colon and high) or ":" in high:
            raise UsageError(
                f"{option}: cannot read {value!r}", expected="LO:HI", remedy="for example 75:95 or 75/98:95/98"
            )
        return _count(low), _count(high)
    if not isinstance(value, Sequence) or len(value) != 2:
        raise UsageError(f"{option}: cannot read {value!r}", expected="two counts", remedy="for example (75, 95)")
    return value[0], value[1]


def checked_clamp(value: Any, option: str) -> Floor:
    """A floor with this clamp, validated as part of a recipe would be."""
    floor = validated({"name": option, "floor": {"clamp": list(span(value, option))}}, option).floor
    return floor or Floor(clamp=(0, 0))


def _count(text: str) -> Count:
    """A whole number, or a share "a/b" as it is."""
    return int(text) if text.isdecimal() and text.isascii() else text


def _counted(value: Any, _: dict[str, Any]) -> Any:
    return _count(value) if isinstance(value, str) else value


def _floor(value: Any, before: dict[str, Any]) -> Any:
    if value is None or value == _NONE:
        return None
    if isinstance(value, Mapping | Floor):
        return _plain(value)
    return {**(before["floor"] or {}), "clamp": list(span(value, "floor"))}


def _outliers(value: Any, _: dict[str, Any]) -> Any:
    if value is None or value == _NONE:
        return None
    if isinstance(value, Mapping | Outliers):
        return _plain(value)
    if isinstance(value, str):
        mode, _sep, limit = value.partition(":")
        return {"mode": mode, "limit": _number(limit or _OUTLIER_LIMIT, "outliers")}
    if not isinstance(value, Sequence) or len(value) != 2:
        raise UsageError(
            f"outliers: cannot read {value!r}", expected="mode and limit", remedy='for example "median:1e4"'
        )
    return {"mode": value[0], "limit": value[1]}


def _class_min(value: Any, _: dict[str, Any]) -> Any:
    return {p: _count(n) for p, n in _pairs(value, "class_min").items()} if isinstance(value, str) else dict(value)


def _class_weights(value: Any, _: dict[str, Any]) -> Any:
    if isinstance(value, str):
        return {p: _number(w, "class_weights") for p, w in _pairs(value, "class_weights").items()}
    return dict(value)


def _positions(value: Any, _: dict[str, Any]) -> Any:
    if isinstance(value, str):
        value = {"all": [], "replies": REPLIES}.get(value, value.split(","))
    return list(value)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else msgspec.json.decode(msgspec.json.encode(value))


_VALUES = {
    "class_weights": _class_weights,
    "class_min": _class_min,
    "floor": _floor,
    "positions": _positions,
    "outliers": _outliers,
    "protect_top": _counted,
    "drop": _counted,
}


def _weights(recipe: Recipe, classes: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    for pattern in given:
        if not any(class_matches(c, pattern) for c in classes):
            raise RecipeError(
                f"class_weights: no class matches {pattern}",
                expected=", ".join(classes),
                actual=pattern,
                remedy="see trimoe stats show",
            )
    meant = {c: w for c in classes if (w := weight_for(c, given)) is not None}
    return {**recipe.class_weights, **meant}


def _number(text: str, option: str) -> float:
    """A finite number. Raises `UsageError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"{option}: {text!r} is not a number", expected="a finite number", remedy="see trimoe map make --help"
        )
    return value


def _pairs(text: str, option: str) -> dict[str, str]:
    """`math=1,code=3` as a dict. Raises `UsageError`."""
    result: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value) or name in result:
            raise UsageError(
                f"{option}: cannot read {part!r}",
                expected="CLASS=NUMBER[,CLASS=NUMBER...], each class once",
                remedy="for example math=1,code=3",
            )
        result[name] = value
    return result
