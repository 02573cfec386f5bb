"""A family file: everything known of one model family, one TOML file in model/families, unknown keys refused.

Adding a family means adding a file; nothing else in trimoe names a family. Each model type and GGUF architecture
belongs to one shipped family (a test checks it). Only the files that are needed are read: the ones with likely names
first. Not guaranteed: child processes do not know the families of `extra_families`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError
from trimoe.io.datafile import Data, convert, parse, read
from trimoe.model.family.converted import Converted
from trimoe.model.family.gguf import GgufNames, GgufSection, standard_names
from trimoe.model.family.hf import HfTensors
from trimoe.model.family.serving import Nvfp4Section, Ollama, Serving

SHIPPED = Path(__file__).parents[1] / "families"
_REMEDY = "correct the file; families/gemma4.toml explains every key"
_extra: tuple["Family", ...] = ()


class Family(Data, frozen=True, kw_only=True):
    """One family file; families/gemma4.toml explains each key. A section that is None is unknown for the family."""

    name: str
    follows: tuple[str, ...] = ()
    note: str = ""
    model_types: tuple[str, ...] = ()
    """Values of `model_type` in config.json."""
    architectures: tuple[str, ...] = ()
    """Values of `general.architecture` in GGUF files."""
    hf: HfTensors | None = None
    gguf: GgufSection | None = None
    nvfp4: Nvfp4Section = Nvfp4Section()
    serving: tuple[Serving, ...] = ()
    ollama: tuple[Ollama, ...] = ()
    converted: Converted | None = None

    def __post_init__(self) -> None:
        if not self.model_types and not self.architectures:
            raise ValueError("a family needs model_types or architectures, or no model can belong to it")
        if self.hf is not None and not self.model_types:
            raise ValueError("section hf needs model_types")
        if self.converted is not None and (self.hf is None or not self.architectures):
            raise ValueError("section converted needs section hf and architectures")
        into = self.nvfp4.unstack
        if into is not None and (self.hf is None or into not in self.hf.layouts):
            raise ValueError(f"nvfp4.unstack names the layout {into}, which is not in [hf.layouts]")

    def serving_for(self, chat_template: str) -> Serving | None:
        """The first serving variant whose chat templates look like this one."""
        return next((variant for variant in self.serving if variant.fits(chat_template)), None)


def load_family(path: Path) -> Family:
    """The family file `path`. Raises `CheckpointError` with the path of the wrong key."""
    what = f"family file {path.name}"
    return _family(read(path, what, error=CheckpointError, remedy=_REMEDY), what, path)


def parse_family(text: str, source: str) -> Family:
    """A family from TOML text without template files. Raises `CheckpointError` with the path of the wrong key."""
    what = f"family file {source}"
    return _family(parse(text, what, "toml", error=CheckpointError, remedy=_REMEDY), what, None)


def _family(data: Any, what: str, path: Path | None) -> Family:
    for kind in ("serving", "ollama"):
        for entry in data.get(kind, ()) if isinstance(data, dict) and isinstance(data.get(kind), list) else ():
            if isinstance(entry, dict):
                entry.setdefault("name", data.get("name"))
                if kind == "ollama" and path is not None and isinstance(entry.get("template"), str):
                    entry["template"] = _template(path, entry["template"], what)
    return convert(data, Family, what, error=CheckpointError, remedy=_REMEDY)


def _template(path: Path, name: str, what: str) -> str:
    """The text of a template file beside a family file."""
    try:
        return path.with_name(name).read_text("utf-8").removesuffix("\n")
    except (OSError, ValueError) as exc:  # also a name with a slash, and bytes that are not UTF-8
        raise CheckpointError(
            f"{what}: the template {name} cannot be read",
            expected="a UTF-8 text file beside the family file",
            actual=str(exc)[:200],
            remedy=_REMEDY,
        ) from exc


@cache
def _shipped(name: str) -> Family:
    return load_family(SHIPPED / name)


@cache
def _files() -> tuple[str, ...]:
    return tuple(sorted(file.name for file in SHIPPED.iterdir() if file.name.endswith(".toml")))


def families() -> tuple[Family, ...]:
    """Every family: extra ones first, then the shipped ones by file name."""
    return (*_extra, *shipped_families())


def shipped_families() -> tuple[Family, ...]:
    """The families of model/families, by file name."""
    return tuple(map(_shipped, _files()))


def family_of(kind: str) -> Family | None:
    """The family of a model type (config.json) or architecture (GGUF); None if there is none."""
    return next(candidates([kind]), None)


def candidates(kinds: Sequence[str]) -> Iterator[Family]:
    """Families with one of these model types or architectures, extra ones first, each once."""
    yield from (family for family in _extra if _has(family, kinds))
    found = {name: family for kind in kinds if (name := _file_of(kind)) and (family := _shipped(name))}
    yield from (found[name] for name in sorted(found))


@lru_cache(256)
def _file_of(kind: str) -> str | None:
    """The shipped file with this model type or architecture; files whose name begins the kind are read first."""
    plain = _letters(kind)

    def unlikely(name: str) -> tuple[bool, int]:
        stem = _letters(name.removesuffix(".toml"))
        return not plain.startswith(stem), -len(stem)

    likely = sorted(_files(), key=unlikely)
    return next((name for name in likely if _has(_shipped(name), [kind])), None)


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())


def _has(family: Family, kinds: Sequence[str]) -> bool:
    return any(kind in family.model_types or kind in family.architectures for kind in kinds)


@contextmanager
def extra_families(*added: Family) -> Iterator[None]:
    """Know further families while the block runs, in every thread; they precede shipped ones of the same kind."""
    global _extra
    before = _extra
    _extra = (*added, *before)
    try:
        yield
    finally:
        _extra = before


def expert_names(architecture: str) -> GgufNames:
    """Names of expert tensors in GGUF files of an architecture: its family's, or llama.cpp's standard ones."""
    family = family_of(architecture)
    return family.gguf.names() if family and family.gguf else standard_names()
