"""Reads bench specs from TOML and applies variants.

A variant is named after a colon (`gsm8k-100:smoke`). It overrides only the keys it lists, drops those that `without`
names, and is a bench of its own.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from msgspec import to_builtins

from trimoe.bench.spec import BenchSpec
from trimoe.errors import BenchError, UsageError
from trimoe.io.datafile import convert, parse

_REMEDY = "see docs/howto/add-a-bench.md"


def parse_spec(text: str, source: str) -> BenchSpec:
    """A spec from TOML text. `BenchError` names the file and the key. Variants are built too, to find their errors."""
    spec = _validated(parse(text, f"bench {source}", "toml", error=BenchError, remedy=_REMEDY), source)
    for name in spec.variant:
        with_variants(spec, [name])
    return spec


def load_spec(file: str) -> BenchSpec:
    """A shipped spec by its file name without `.toml`."""
    path = resources.files("trimoe.bench") / "benches" / f"{file}.toml"
    return parse_spec(path.read_text(encoding="utf-8"), f"{file}.toml")


def with_variants(spec: BenchSpec, variants: Sequence[str]) -> BenchSpec:
    """The bench `name:variant:...` with its overrides applied in order. `UsageError` lists the known variants."""
    data = to_builtins(spec)
    for name in variants:
        if name not in spec.variant:
            raise UsageError(
                f"bench {spec.name} has no variant {name}",
                expected=", ".join(sorted(spec.variant)) or "no variant",
                actual=name,
                remedy="see docs/reference/benches.md",
            )
        changes = dict(spec.variant[name])
        without = changes.pop("without", [])
        if not isinstance(without, list) or not all(isinstance(key, str) for key in without):
            raise BenchError(
                f"bench {spec.name}: variant {name}",
                expected="`without` as a list of keys",
                actual=repr(without)[:200],
                remedy=_REMEDY,
            )
        # A variant may have other rows, so the base's hash does not apply unless the variant states its own.
        data = _merged({**data, "dataset_sha256": ""}, changes)
        for key in without:
            data.pop(key, None)
    return _validated(data, ":".join([spec.name, *variants]))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, table by table. The rule that picks rows is one choice and is replaced as a whole."""
    out = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping) and key != "rows"
        out[key] = _merged(out[key], value) if nested else value
    return out


def _validated(data: Any, source: str) -> BenchSpec:
    return convert(data, BenchSpec, f"bench {source}", error=BenchError, remedy=_REMEDY)
