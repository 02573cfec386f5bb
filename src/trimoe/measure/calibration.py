"""Calibration sets as data: a YAML file of classes, each a list of sources, read into documents and windows.

Invariants: unknown keys are refused; a document belongs to one class and carries a weight; windows never cross
documents and never overlap, so no token is counted twice; the set's hash covers the token ids, classes, masks and
weights that are measured and nothing else (moving the files does not change it).
Not guaranteed: that the data resembles your work. Nothing is downloaded here.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trimoe.artifact import canonical_json
from trimoe.errors import CalibrationError
from trimoe.measure.sources import Message, Source, SourceText


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def __call__(self, text: str, **kwargs: Any) -> Any: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...


@dataclass(frozen=True)
class Document:
    """One text of a class as tokens. `counted` marks the positions whose routing is measured (None: all of them)."""

    category: str
    tokens: tuple[int, ...]
    weight: float = 1.0
    counted: tuple[bool, ...] | None = None

    @property
    def digest(self) -> bytes:
        """sha256 of what is measured; it also draws the bootstrap shard of the document."""
        body = struct.pack(f"<{len(self.tokens)}q", *self.tokens) + struct.pack("<d", self.weight)
        mask = bytes(self.counted) if self.counted is not None else b""
        return hashlib.sha256(self.category.encode() + b"\0" + body + b"\0" + mask).digest()


@dataclass(frozen=True)
class Window:
    """A run of at most `window` tokens of one document: the unit of the window-wise statistics."""

    category: int
    document: int
    shard: int
    weight: float
    tokens: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Windows:
    """All windows of a set, by class and in document order. `set_hash` identifies what is measured."""

    classes: tuple[str, ...]
    windows: tuple[Window, ...]
    set_hash: str
    documents: dict[str, int]

    def tokens(self) -> dict[str, int]:
        """Counted tokens per class."""
        counts = dict.fromkeys(self.classes, 0)
        for window in self.windows:
            counts[self.classes[window.category]] += int(window.counted.sum())
        return counts


class CalibrationSet(BaseModel):
    """The YAML file: see docs/reference and examples/tiny/calibration.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    """A label for people; not part of the set's hash."""
    window: int = Field(2048, ge=2, le=1 << 20)
    """Tokens per window; a longer document is cut into several, without overlap."""
    classes: dict[str, list[Source]] = Field(min_length=1)
    """Class name -> sources. Recipes address classes by name patterns (`generic_*`, `targeted_*`)."""

    @field_validator("classes")
    @classmethod
    def _not_empty(cls, classes: dict[str, list[Source]]) -> dict[str, list[Source]]:
        for name, sources in classes.items():
            if not sources:
                raise ValueError(f"class {name} has no source")
            if not name or name.strip() != name:
                raise ValueError(f"class name {name!r} is empty or has spaces around it")
        return classes

    @classmethod
    def load(cls, path: Path | str) -> "CalibrationSet":
        """Read and validate a set file; relative paths in it are resolved against its folder. `CalibrationError`."""
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise CalibrationError(f"calibration set {path} not found", expected="a YAML file",
                                   remedy="check the path") from exc  # fmt: skip
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise CalibrationError(f"calibration set {path} is not readable YAML", actual=str(exc)[:300]) from exc
        try:
            loaded = cls.model_validate(data)
        except ValidationError as exc:
            found = exc.errors(include_url=False)[0]
            raise CalibrationError(
                f"calibration set {path} is not valid", expected="name, window, classes: {class: [sources]}",
                actual=f"{'.'.join(str(p) for p in found['loc'])}: {found['msg']}",
                remedy="correct this key; examples/tiny/calibration.yaml shows every kind of source",
            ) from exc  # fmt: skip
        classes = {
            name: [source.resolve(path.parent) for source in sources] for name, sources in loaded.classes.items()
        }
        return loaded.model_copy(update={"classes": classes})

    def texts(self) -> dict[str, list[SourceText]]:
        """Every source read, by class. Raises `CalibrationError` for an empty class."""
        result = {}
        for name, sources in self.classes.items():
            result[name] = [text for source in sources for text in source.read()]
            if not result[name]:
                raise CalibrationError(
                    f"class {name} of calibration set {self.name} is empty", expected="at least one document",
                    actual="no source gave any", remedy="check its filters and limits, or remove the class",
                )  # fmt: skip
        return result


def documents_of(texts: dict[str, list[SourceText]], tokenizer: Tokenizer) -> list[Document]:
    """Render and tokenise. Raises `CalibrationError` where a chat is given and the tokenizer has no chat template."""
    return [_document(name, text, tokenizer) for name, items in texts.items() for text in items]


def _document(category: str, text: SourceText, tokenizer: Tokenizer) -> Document:
    if isinstance(text.body, str):
        ids = tokenizer(text.body, add_special_tokens=True)["input_ids"]
    else:
        ids = _render(text.body, text.thinking, tokenizer)
    if not ids:
        raise CalibrationError(f"a document of class {category} has no tokens", remedy="remove the empty document")
    counted = None
    if text.count_before is not None:
        wanted = tokenizer.convert_tokens_to_ids(text.count_before)
        if not isinstance(wanted, int):
            raise CalibrationError(f"{text.count_before!r} is not one token of this model", expected="a token string",
                                   remedy="give the token exactly as in the vocabulary")  # fmt: skip
        counted = tuple(following == wanted for following in (*ids[1:], None))
    return Document(category, tuple(int(i) for i in ids), text.weight, counted)


def _render(messages: Sequence[Message], thinking: bool | None, tokenizer: Tokenizer) -> list[int]:
    if not tokenizer.chat_template:
        raise CalibrationError(
            "the calibration set holds chats but the model has no chat template", expected="chat_template.jinja",
            actual="a tokenizer without one", remedy="use sources with a text field, or add the model's template",
        )  # fmt: skip
    extra = {} if thinking is None else {"enable_thinking": thinking}
    open_turn = messages[-1]["role"] != "assistant"
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=open_turn, **extra)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def windows_of(documents: Sequence[Document], window: int, shards: int) -> Windows:
    """Cut documents into windows. The shard of a document is drawn by its content hash."""
    classes = tuple(dict.fromkeys(d.category for d in documents))
    digest = hashlib.sha256(canonical_json([window, list(classes)]))
    windows = []
    for number, document in enumerate(documents):
        digest.update(document.digest)
        shard = int.from_bytes(document.digest[:8], "big") % shards
        tokens = np.asarray(document.tokens, np.int64)
        counted = np.ones(len(tokens), bool) if document.counted is None else np.asarray(document.counted, bool)
        category = classes.index(document.category)
        for at in range(0, len(tokens), window):
            cut = slice(at, at + window)
            windows.append(Window(category, number, shard, document.weight, tokens[cut], counted[cut]))
    counts = {name: sum(d.category == name for d in documents) for name in classes}
    return Windows(classes, tuple(windows), digest.hexdigest(), counts)
