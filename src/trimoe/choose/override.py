"""Recipe fields given on the command line: short texts, parsed and laid over a recipe, then validated as one.

A text that cannot be parsed is a `UsageError`, a value that the recipe cannot have a `RecipeError`.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimoe.choose.recipe import Recipe, class_matches, validated, weight_for
from trimoe.errors import BadInput, RecipeError, UsageError
from trimoe.io.publish import read_json


def override(
    recipe: Recipe,
    classes: Sequence[str],
    *,
    class_weights: dict[str, str] | None = None,
    class_min: dict[str, str] | None = None,
    floor: tuple[str, str] | None = None,
    no_floor: bool = False,
    outliers: str | None = None,
    **fields: Any,
) -> Recipe:
    """The recipe with the given fields replaced; None leaves a field as it is.

    Class weights are looked up among those given first; the classes that they match then stand in the recipe by their
    full names, and all others keep the recipe's weight. Every name must match one of `classes`, because a misspelt one
    would silently change nothing.
    """
    data = recipe.model_dump(mode="json")
    data |= {name: value for name, value in fields.items() if value is not None}
    if class_weights is not None:
        _known(class_weights, classes, "--class-weights")
        given = {p: number(w, "--class-weights") for p, w in class_weights.items()}
        meant = {c: w for c in classes if (w := weight_for(c, given)) is not None}
        data["class_weights"] = {**recipe.class_weights, **meant}
    if class_min is not None:
        data["class_min"] = {p: count(n) for p, n in class_min.items()}
    if no_floor:
        data["floor"] = None
    elif floor is not None:
        data["floor"] = {**(data["floor"] or {}), "clamp": [count(n) for n in floor]}
    if outliers is not None:
        mode, _, limit = outliers.partition(":")
        data["outliers"] = None if outliers == "none" else {"mode": mode, "limit": number(limit or "1e4", "--outliers")}
    if data == recipe.model_dump(mode="json"):
        return recipe
    return validated(data, f"{recipe.name} with overrides")


def count(text: str) -> int | str:
    """A whole number, or a share "a/b" as it is."""
    return int(text) if text.isdecimal() and text.isascii() else text


def number(text: str, option: str) -> float:
    """A finite number. Raises `UsageError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option}: {text!r} is not a number", remedy="see trimoe map --help")
    return value


def pairs(text: str, option: str) -> dict[str, str]:
    """`math=1,code=3` as a dict. Raises `UsageError`."""
    result: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value) or name in result:
            raise UsageError(f"{option}: cannot read {part!r}", expected="CLASS=NUMBER[,CLASS=NUMBER...], each once")
        result[name] = value
    return result


def span(text: str, option: str) -> tuple[str, str]:
    """`LO:HI` as two texts. Raises `UsageError`."""
    low, colon, high = text.partition(":")
    if not (low and colon and high) or ":" in high:
        raise UsageError(f"{option}: cannot read {text!r}", expected="LO:HI", remedy="for example 75:95 or 75/98:95/98")
    return low, high


def read_floors(path: Path) -> list[int]:
    """Counts per layer from {"floor_per_layer": {"0": 80, ...}} or the inner object alone. Raises `RecipeError`."""
    data = read_json(path, "floor file", RecipeError)
    body = data.get("floor_per_layer", data) if isinstance(data, dict) else None
    if not isinstance(body, dict) or sorted(body) != sorted(str(i) for i in range(len(body))):
        raise RecipeError(f"{path} is not a floor file", expected='{"floor_per_layer": {"0": count, ...}}')
    floors = [body[str(i)] for i in range(len(body))]
    if not floors or any(type(f) is not int or f < 0 for f in floors):
        raise RecipeError(f"{path} has a floor that is not a count", expected="whole numbers from 0")
    return floors


def read_force_keep(path: Path) -> dict[int, list[int]]:
    """Experts to keep: lines `LAYER:EXPERT` (# starts a comment), or JSON {"0": [ids]}. Raises `BadInput`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise BadInput(f"force-keep file {path} not found", remedy="check the path") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"force-keep file {path} is not readable", actual=str(exc)[:200]) from exc
    result: dict[int, list[int]] = {}
    for layer, expert in _json_pins(text, path) if text.lstrip().startswith("{") else _line_pins(text, path):
        if expert not in result.setdefault(layer, []):
            result[layer].append(expert)
    return result


def _line_pins(text: str, path: Path) -> list[tuple[int, int]]:
    pins = []
    for at, line in enumerate(text.splitlines(), 1):
        body = line.partition("#")[0].strip()
        layer, _, expert = (word.strip() for word in body.partition(":"))
        if body and not (layer.isdecimal() and expert.isdecimal()):
            raise BadInput(f"{path}, line {at}: cannot read {line[:60]!r}", expected="LAYER:EXPERT")
        if body:
            pins.append((int(layer), int(expert)))
    return pins


def _json_pins(text: str, path: Path) -> list[tuple[int, int]]:
    try:
        return [(int(layer), _whole(e)) for layer, ids in json.loads(text).items() for e in ids]
    except (ValueError, TypeError, RecursionError) as exc:
        raise BadInput(
            f"force-keep file {path} is malformed", expected='{"layer": [expert ids]}', actual=str(exc)[:200]
        ) from exc


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not an expert id")
    return value


def _known(given: dict[str, str], classes: Sequence[str], option: str) -> None:
    for pattern in given:
        if not any(class_matches(c, pattern) for c in classes):
            raise RecipeError(
                f"{option}: no class matches {pattern}",
                expected=", ".join(classes),
                actual=pattern,
                remedy="see trimoe stats show",
            )
