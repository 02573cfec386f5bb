"""The one loader of validated data files: TOML, YAML or JSON text in, a typed frozen value out.

Every hand-written or shipped data file (families, recipes, calibration sets, benches, ladders, thresholds) is a `Data`
type. Unknown keys, keys given twice, wrong types and numbers that are not finite are refused with the path of the key;
a misspelt key gets the nearest known one. The caller chooses the error class and the remedy.
"""

import math
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from trimoe.errors import BadInput
from trimoe.io.jsonfile import each_key_once, parse_json

T = TypeVar("T")
Format = Literal["toml", "yaml", "json"]
LARGEST = 64 << 20  # bytes of a data file
_FORMATS: dict[str, Format] = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
_SUBJECT = 400  # characters of a parser's own message


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of data-file types. Subclasses repeat `kw_only=True`, which msgspec applies to a class's own fields only."""


def load(
    kind: type[T],
    source: Path | Traversable,
    what: str,
    *,
    error: type[BadInput] = BadInput,
    remedy: str = "correct the file",
) -> T:
    """The file `source` as a `kind`. `what` names it in messages ("recipe my.toml"). Raises `error`."""
    return convert(read(source, what, error=error, remedy=remedy), kind, what, error=error, remedy=remedy)


def read(
    source: Path | Traversable,
    what: str,
    *,
    format: Format | None = None,
    error: type[BadInput] = BadInput,
    remedy: str = "correct the file",
) -> Any:
    """The plain data of a file; the format follows from its suffix unless given. Raises `error`."""
    kind = format or _FORMATS.get(Path(source.name).suffix.lower())
    if kind is None:
        raise error(f"{what} has an unknown suffix", expected=", ".join(_FORMATS), actual=source.name, remedy=remedy)
    try:
        with source.open("rb") as handle:
            content = handle.read(LARGEST + 1)
    except OSError as exc:
        raise error(
            f"{what} cannot be read", expected=f"a {kind.upper()} file", actual=str(exc), remedy=remedy
        ) from exc
    if len(content) > LARGEST:
        raise error(f"{what} is too large", expected=f"at most {LARGEST} bytes", remedy=remedy)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise error(f"{what} is not text", expected="UTF-8", actual=str(exc), remedy=remedy) from exc
    return parse(text, what, kind, error=error, remedy=remedy)


def parse(
    text: str,
    what: str,
    format: Format,
    *,
    error: type[BadInput] = BadInput,
    remedy: str = "correct the file",
) -> Any:
    """Plain data from text. Refuses keys given twice and numbers that are not finite."""
    try:
        data = _PARSERS[format](text)
    # PyYAML passes on what its constructors raise, for example for the date 2020-13-45.
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise error(
            f"{what} is not valid {format.upper()}",
            expected="UTF-8 text, each key once",
            actual=str(exc)[:_SUBJECT],
            remedy=remedy,
        ) from exc
    if (path := next(_not_finite(data, ""), None)) is not None:
        raise error(f"{what}: {path} is not a finite number", expected="a finite number", remedy=remedy)
    return data


def convert(
    data: Any,
    kind: type[T],
    what: str,
    *,
    error: type[BadInput] = BadInput,
    remedy: str = "correct the file",
) -> T:
    """Plain data as a `kind`. Raises `error` with the key's path, and the nearest known key for an unknown one."""
    try:
        return msgspec.convert(data, kind, dec_hook=_path)
    except msgspec.ValidationError as exc:
        message, path = _located(exc, data, kind)
        raise error(
            f"{what}: {path}" if path else what,
            expected="known keys with possible values",
            actual=message + _nearest(message, kind),
            remedy=remedy,
        ) from exc


def _path(kind: type[Any], value: Any) -> Any:
    """msgspec's hook for types that it does not know: a `Path` is written as text."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `path`, got `{type(value).__name__}`")


def _located(exc: msgspec.ValidationError, data: Any, kind: Any) -> tuple[str, str]:
    """(message, path of the key) of an error. msgspec writes `[...]` for a key of a mapping; here the key is named."""
    message, _, path = str(exc).partition(" - at `$")
    steps: list[Any] = []
    for word in re.findall(r"\.[^.\[`]+|\[\d+\]|\[\.\.\.\]", path):
        if word == "[...]":
            mapping = data
            for step in steps:
                mapping = mapping[step]
            keys = list(mapping)
            steps.append(next((k for k in keys if _fails(_with_one_key(data, steps, k), kind, str(exc))), keys[0]))
        else:
            steps.append(int(word[1:-1]) if word[0] == "[" else word[1:])
    if "unknown field" in message:
        steps.append(message.split("`")[1])
    return message, "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def _with_one_key(data: Any, steps: Sequence[Any], key: Any) -> Any:
    """A copy of `data` in which the mapping at `steps` has no key but `key`."""
    if not steps:
        return {key: data[key]}
    copy = data.copy()
    copy[steps[0]] = _with_one_key(data[steps[0]], steps[1:], key)
    return copy


def _fails(data: Any, kind: Any, message: str) -> bool:
    """Whether the conversion fails with this message."""
    try:
        msgspec.convert(data, kind, dec_hook=_path)
    except msgspec.ValidationError as exc:
        return str(exc) == message
    return False


def _nearest(message: str, kind: Any) -> str:
    """`; did you mean ...?` for msgspec's "unknown field `x`"."""
    if "unknown field" not in message:
        return ""
    unknown = message.split("`")[1]
    found = get_close_matches(unknown, sorted(_fields(kind, set())), n=1)
    return f"; did you mean `{found[0]}`?" if found else ""


def _fields(kind: Any, seen: set[Any]) -> Iterator[str]:
    """Names of all keys of a type and of the types within it."""
    if kind in seen:
        return
    seen.add(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield field.encode_name
            yield from _fields(field.type, seen)
    for argument in getattr(kind, "__args__", ()):
        yield from _fields(argument, seen)


def _not_finite(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path.lstrip(".") or "the value"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _not_finite(inner, f"{path}[{at}]")


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _yaml_loader())
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from exc


@cache
def _yaml_loader() -> Any:
    """A safe loader that refuses a key given twice, where YAML would silently keep the last one."""
    import yaml

    class Once(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *name` brings keys that others may override
                    continue
                key = self.construct_object(key_node, deep=True)
                plain = isinstance(key, str | int | float | bool)
                if plain and key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key if plain else id(key_node))
            return super().construct_mapping(node, deep)

    return Once


def _json(text: str) -> Any:
    return parse_json(text.encode(), object_pairs_hook=each_key_once)


_PARSERS: dict[Format, Callable[[str], Any]] = {"toml": tomllib.loads, "yaml": _yaml, "json": _json}
