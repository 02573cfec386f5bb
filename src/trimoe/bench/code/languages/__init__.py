"""Languages other than Python: one module each, found by MultiPL-E's key."""

import importlib
import pkgutil
from functools import cache

from trimoe.bench.code.languages._language import Language, Toolchain
from trimoe.bench.code.languages._scan import Syntax, bare

__all__ = ["Language", "Syntax", "Toolchain", "bare", "language_of", "languages"]


@cache
def languages() -> dict[str, Language]:
    """Every language by its key."""
    modules = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").LANGUAGE for name in modules]
    return {language.key: language for language in found}


def language_of(key: str) -> Language:
    """The language of a key. Raises `KeyError` for an unknown key."""
    return languages()[key]
