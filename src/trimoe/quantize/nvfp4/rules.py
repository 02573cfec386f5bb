"""Rules of NVFP4A16 that hold for every family: what is quantized and how the parts are named, from rules.toml."""

from functools import cache
from importlib import resources

from msgspec import to_builtins

from trimoe.io.canonical import sha256_json
from trimoe.io.datafile import Data, convert, load, parse
from trimoe.model.family.file import Family, shipped_families

LAYOUTS = ("modelopt", "compressed-tensors")


class Producer(Data, frozen=True, kw_only=True):
    """The producer that loaders find in the checkpoint."""

    name: str
    version: str


class Rules(Data, frozen=True, kw_only=True):
    """See rules.toml for the meaning of each key. What differs by family is section [nvfp4] of the family file."""

    tier: str
    keep: tuple[str, ...]
    always_ignored: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]
    matrices: tuple[str, ...]
    split: dict[str, tuple[str, ...]]
    producer: Producer


@cache
def rules() -> Rules:
    """The shipped rules."""
    return load(Rules, resources.files("trimoe.quantize.nvfp4") / "rules.toml", "rules.toml")


def parse_rules(text: str, source: str) -> Rules:
    """Rules from TOML text. Raises `BadInput` with the path of the wrong key."""
    what = f"rules {source}"
    return convert(parse(text, what, "toml"), Rules, what)


def rules_hash(family: Family) -> str:
    """Hash of everything that decides about the bytes: the rules, and the section [nvfp4] of the families.

    Shipped families all count, so that checkpoints made by earlier versions are recognised as finished.
    """
    known = (*shipped_families(), family)
    unstack = {one.name: one.nvfp4.unstack for one in known if one.nvfp4.unstack is not None}
    extra = {"family_keep": list(family.nvfp4.keep)} if family.nvfp4.keep else {}
    return sha256_json({**to_builtins(rules()), "unstack": unstack, **extra})
