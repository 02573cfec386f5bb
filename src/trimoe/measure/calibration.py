"""Calibration sets as data: a YAML file names classes, and for each class where its documents come from.

    name: demo
    window: 2048                 # tokens per window, no overlap; a longer document is cut into several windows
    classes:
      generic_code:
        - tiny: {domain: code, count: 60}              # train-split items of the bundled tasks
      targeted_code:
        - file: {path: traces.jsonl, prompt: prompt, completion: completion}
      generic_text:
        - file: {path: prose.jsonl, text: text}        # plain text, no chat template

Paths are relative to the set file. Unknown keys are refused. The set's hash is over its documents, not its file name.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimoe.artifact import sha256_json
from trimoe.errors import CalibrationError
from trimoe.model.tiny.tasks import generate


@dataclass(frozen=True)
class Document:
    """One document: a chat (`prompt`, `completion`) or plain `text`."""

    class_name: str
    prompt: str | None
    completion: str
    text: str | None


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TinySource(_Data):
    """Items of the bundled model's tasks, train split only."""

    domain: Literal["code", "math", "choice", "format", "text", "story"]
    count: int = Field(gt=0)
    seed: int = 0


class FileSource(_Data):
    """Rows of a JSONL file (or .jsonl.gz): `text`, or `prompt` and `completion`, name the fields."""

    path: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    limit: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.text is None) == (self.prompt is None) or (self.prompt is None) != (self.completion is None):
            raise ValueError("give either text, or prompt and completion")
        return self


class Source(_Data):
    """Exactly one of the kinds."""

    tiny: TinySource | None = None
    file: FileSource | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.tiny is None) == (self.file is None):
            raise ValueError("a source is either tiny or file")
        return self


class CalibrationSet(_Data):
    """A validated set file."""

    name: str
    window: int = Field(default=2048, gt=1)
    classes: dict[str, list[Source]]

    @classmethod
    def load(cls, path: Path) -> "tuple[CalibrationSet, list[Document]]":
        """Read a set file and all its documents. Raises `CalibrationError` naming key, file or class."""
        try:
            chosen = cls.model_validate(yaml.safe_load(path.read_text()))
        except FileNotFoundError as exc:
            raise CalibrationError(f"calibration set {path} not found", remedy="check --set") from exc
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise CalibrationError(f"calibration set {path} is not valid YAML", actual=str(exc)[:300]) from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            raise CalibrationError(f"calibration set {path}: {'.'.join(map(str, first['loc']))}",
                                   expected="a known key with a possible value", actual=first["msg"],
                                   remedy="see docs/reference/calibration-sets.md") from exc  # fmt: skip
        documents = []
        for name, sources in chosen.classes.items():
            found = [d for source in sources for d in _documents(name, source, path.parent)]
            if not found:
                raise CalibrationError(f"class {name} of {path} is empty", expected="at least one document",
                                       remedy="add a source or remove the class")  # fmt: skip
            documents += found
        return chosen, documents


def set_hash(documents: list[Document], window: int) -> str:
    """Identity of a set: its window and every document in order."""
    return sha256_json([window, [[d.class_name, d.prompt, d.completion, d.text] for d in documents]])


def _documents(name: str, source: Source, folder: Path) -> Iterator[Document]:
    if source.tiny is not None:
        for item in generate(source.tiny.domain, "train", source.tiny.count, source.tiny.seed):
            yield Document(name, item.prompt, item.answer, None)
    elif source.file is not None:
        spec = source.file
        for number, row in enumerate(_rows(folder / spec.path)):
            if spec.limit is not None and number >= spec.limit:
                return
            if spec.text is not None:
                yield Document(name, None, "", _field(row, spec.text, spec.path, number))
            else:
                prompt = _field(row, spec.prompt or "", spec.path, number)
                yield Document(name, prompt, _field(row, spec.completion or "", spec.path, number), None)


def _rows(path: Path) -> Iterator[Any]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except (OSError, UnicodeDecodeError, EOFError) as exc:
        raise CalibrationError(f"source {path} cannot be read", actual=str(exc)[:200], remedy="check the path") from exc
    for number, line in enumerate(text.split("\n")):  # not splitlines: U+2028 is text
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as exc:
                raise CalibrationError(f"{path} line {number + 1} is not JSON", actual=line[:80]) from exc


def _field(row: Any, name: str, path: str, number: int) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value:
        raise CalibrationError(f"{path} row {number + 1} has no text in field {name}", expected="a non-empty string",
                               actual=repr(value)[:80])  # fmt: skip
    return value
