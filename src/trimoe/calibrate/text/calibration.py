"""Calibration sets as data: a YAML file of classes, each a list of sources, read into documents and windows.

Invariants: unknown keys, and keys given twice, are refused; a document belongs to one class and carries a weight; rows
of MultiPL-E never get in. Not guaranteed: that the data resembles your work.
"""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trimoe.calibrate.text.multipl_e import refuse_text
from trimoe.calibrate.text.rendering import Tokenizer, documents_of
from trimoe.calibrate.text.sources import Source, SourceText
from trimoe.calibrate.text.windows import Document, LongDocuments, Window, Windows, windows_of
from trimoe.errors import CalibrationError

__all__ = ["CalibrationSet", "Document", "Tokenizer", "Window", "Windows", "documents_of", "shipped", "windows_of"]


class CalibrationSet(BaseModel):
    """The YAML file: see docs/reference/calibration-set.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    """A label for people; not part of the set's hash."""
    window: Annotated[int, Field(ge=2, le=1 << 20, strict=True)] = 2048
    """Tokens per window."""
    long_documents: LongDocuments = "split"
    """A document longer than the window is split into several, without overlap; `cut`: what goes beyond the first
    window is left out and counted; `refuse`: it is an error."""
    classes: dict[str, list[Source]] = Field(min_length=1)
    """Class name -> sources. Recipes address classes by name patterns (`generic_*`, `targeted_*`)."""

    @field_validator("classes")
    @classmethod
    def _not_empty(cls, classes: dict[str, list[Source]]) -> dict[str, list[Source]]:
        for name, sources in classes.items():
            if not sources:
                raise ValueError(f"class {name} has no source")
            if not name or name.strip() != name or not name.isprintable():
                raise ValueError(f"class name {name!r} is empty, has spaces around it or cannot be printed")
        return classes

    @classmethod
    def load(cls, path: Path | str) -> "CalibrationSet":
        """Read and validate a set file; relative paths in it are resolved against its folder. `CalibrationError`.

        A bare name that is no file is looked for among the shipped sets.
        """
        path = Path(path)
        if not path.exists() and path.name in shipped() and path.parent == Path("."):
            return cls._parse(_shipped_file(path.name), f"calibration set {path.name}", Path("."))
        return cls._parse(path, f"calibration set {path}", path.parent)

    @classmethod
    def _parse(cls, file: Path | Traversable, what: str, folder: Path) -> "CalibrationSet":
        try:
            data = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        except FileNotFoundError as exc:
            raise CalibrationError(
                f"{what} not found",
                expected=f"a YAML file, or one of the shipped sets: {', '.join(shipped())}",
                remedy="check the path",
            ) from exc
        # PyYAML lets through what its constructors raise, for example for the date 2020-13-45.
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as exc:
            raise CalibrationError(
                f"{what} is not readable YAML",
                expected="UTF-8 YAML, every key once",
                actual=str(exc)[:300],
                remedy="correct the file",
            ) from exc
        try:
            loaded = cls.model_validate(data)
        except ValidationError as exc:
            # A misspelt key gives two errors (one missing, one unknown): the reader needs both.
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False)]
            raise CalibrationError(
                f"{what} is not valid",
                expected="name, window, classes: {class: [sources]}",
                actual="; ".join(found[:4]),
                remedy="correct it; docs/reference/calibration-set.md lists all keys",
            ) from exc
        classes = {name: [source.resolve(folder) for source in sources] for name, sources in loaded.classes.items()}
        return loaded.model_copy(update={"classes": classes})

    def texts(self) -> dict[str, list[SourceText]]:
        """Every source read, by class. Raises `CalibrationError` for a class or source without documents, `Refused`
        for a text of MultiPL-E."""
        result: dict[str, list[SourceText]] = {}
        for name, sources in self.classes.items():
            try:
                result[name] = [text for source in sources for text in source.read()]
            except CalibrationError as exc:
                subject = f"class {name} of calibration set {self.name}: {exc.subject}"
                raise CalibrationError(subject, expected=exc.expected, actual=exc.actual, remedy=exc.remedy) from exc
            for text in result[name]:
                refuse_text(text.text, f"{text.where} of class {name}")
        return result

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """class -> its sources in a few words each, for the statistics file."""
        return {name: [source.describe() for source in sources] for name, sources in self.classes.items()}


def shipped() -> tuple[str, ...]:
    """Names of the sets in the package."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml")))


def _folder() -> Traversable:
    return resources.files("trimoe.calibrate.text") / "sets"


def _shipped_file(name: str) -> Traversable:
    return _folder() / f"{name}.yaml"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice: YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *name` brings keys that others may override
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, str | int | float | bool) else id(key_node))
        return super().construct_mapping(node, deep)
