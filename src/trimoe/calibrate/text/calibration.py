"""Calibration sets as data: a YAML file of classes, each a list of sources that yield documents.

Invariants: unknown keys, and keys given twice, are refused; a document belongs to one class and has a weight; rows of
MultiPL-E are refused. Not guaranteed: that the data resembles your work.
"""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from trimoe.calibrate.text.multipl_e import refuse_text
from trimoe.calibrate.text.rendering import Tokenizer, documents_of
from trimoe.calibrate.text.sources import Source, SourceText
from trimoe.calibrate.text.windows import Document, LongDocuments, Window, Windows, windows_of
from trimoe.errors import CalibrationError
from trimoe.io import datafile
from trimoe.io.datafile import Data
from trimoe.io.paths import places

_REMEDY = "correct it; docs/reference/calibration-set.md lists all keys"

__all__ = ["CalibrationSet", "Document", "Tokenizer", "Window", "Windows", "documents_of", "shipped", "windows_of"]


class CalibrationSet(Data, frozen=True, kw_only=True):
    """The YAML file: see docs/reference/calibration-set.md."""

    name: str
    """A label; not part of the set's hash."""
    window: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)] = 2048
    """Tokens per window."""
    long_documents: LongDocuments = "split"
    """What happens to a document longer than the window: `split` makes several windows without overlap, `cut` keeps the
    first window and counts the rest as left out, `refuse` is an error."""
    classes: Annotated[dict[str, list[Source]], msgspec.Meta(min_length=1)]
    """Class name -> sources. Recipes match classes by name patterns (`generic_*`, `targeted_*`)."""

    def __post_init__(self) -> None:
        for name, sources in self.classes.items():
            if not sources:
                raise ValueError(f"class {name} has no source")
            if not name or name.strip() != name or not name.isprintable():
                raise ValueError(f"class name {name!r} is empty, has spaces around it or cannot be printed")

    @classmethod
    def load(cls, path: Path | str, *, data: Path | None = None) -> "CalibrationSet":
        """Read and validate a set file, or the shipped set of that name if there is no such file.

        Paths in the file are relative to its folder, or to `data`, and lie below one of them. Raises
        `CalibrationError`.
        """
        path = Path(path)
        _refuse_other_files(path)
        if path.exists():
            return cls._read(path, f"calibration set {path}", path.parent, data)
        if path.name in shipped() and path.parent == Path("."):
            return cls._read(_folder() / f"{path.name}.yaml", f"calibration set {path.name}", Path("."), data)
        raise CalibrationError(
            f"calibration set {path} not found",
            expected=f"a YAML file, or one of the shipped sets: {', '.join(shipped())}",
            actual="no such file",
            remedy="check the path",
        )

    @classmethod
    def _read(cls, file: Path | Traversable, what: str, folder: Path, data: Path | None = None) -> "CalibrationSet":
        content = datafile.read(file, what, format="yaml", error=CalibrationError, remedy=_REMEDY)
        loaded = datafile.convert(content, cls, what, error=CalibrationError, remedy=_REMEDY)
        place = places(folder, what, data, CalibrationError)
        classes = {name: [source.resolve(place) for source in sources] for name, sources in loaded.classes.items()}
        return msgspec.structs.replace(loaded, classes=classes)

    def texts(self) -> dict[str, list[SourceText]]:
        """The documents of every source, by class. Raises `CalibrationError` for a class or source without documents,
        `Refused` for a text of MultiPL-E."""
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
        """class -> short descriptions of its sources, for the statistics file."""
        return {name: [source.describe() for source in sources] for name, sources in self.classes.items()}


def _refuse_other_files(path: Path) -> None:
    """Refuse what is given in place of a set: a model's directory, or rows of prompts."""
    if path.is_dir():
        raise CalibrationError(
            f"{path} is a directory, not a calibration set",
            expected="a YAML file of classes",
            actual="a directory",
            remedy="give the model first and the set after --set: trimoe calibrate MODEL --set SET.yaml -o STATS",
        )
    if path.is_file() and path.name.endswith((".safetensors", ".gguf", ".db")):
        raise CalibrationError(
            f"{path} is not a calibration set",
            expected="a YAML file of classes",
            actual=f"a file named {path.name}",
            remedy="give the set after --set, and the file for the result after -o: trimoe calibrate MODEL "
            "--set SET.yaml -o STATS.safetensors",
        )
    if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz", ".parquet", ".csv")):
        raise CalibrationError(
            f"{path} holds rows, not a calibration set",
            expected="a YAML file that names the file of rows",
            actual=f"a file named {path.name}",
            remedy="write a set file beside it: `name: mine` and, on the next lines, `classes:` and "
            f"`  generic_code: [{{kind: prompts, path: {path.name}}}]`; or name the rows my-prompts.jsonl and take "
            "--set my-prompts",
        )


def shipped() -> tuple[str, ...]:
    """Names of the sets in the package."""
    return tuple(sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml")))


def _folder() -> Traversable:
    return resources.files("trimoe.calibrate.text") / "sets"
