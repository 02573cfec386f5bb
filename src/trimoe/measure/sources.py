"""Where calibration text comes from: one small model per kind of source, told apart by `kind`.

A source gives `SourceText`s: plain text, or the messages of a chat that the model's own template renders later.
Invariants: unknown keys are refused; order and content are a function of the data alone; no network.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimoe.errors import CalibrationError

Message = dict[str, str]
"""{"role": "user" | "assistant" | "system", "content": text}."""


@dataclass(frozen=True)
class SourceText:
    """One document before tokenisation. `count_before`: measure only positions that predict this token."""

    body: str | tuple[Message, ...]
    weight: float = 1.0
    thinking: bool | None = None
    count_before: str | None = None


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How many times each document counts."""
    limit: int | None = Field(None, ge=1)
    """Read at most this many documents."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; None leaves the template's default."""
    scaffolding: Literal["keep", "strip"] = "keep"
    """strip: prompt and reply as plain text, without the chat template's markers."""
    count_before: str | None = None
    """Measure only positions that predict this token, for example the end of the turn."""

    def resolve(self, folder: Path) -> "_Source":
        """The same source with its paths made absolute against the set file's folder."""
        return self

    def _items(self) -> Iterator[SourceText]:
        raise NotImplementedError

    def read(self) -> list[SourceText]:
        """All documents of this source, in order."""
        result: list[SourceText] = []
        for item in self._items():
            if self.limit is not None and len(result) == self.limit:
                break
            result.append(item)
        return result

    def _text(self, text: str) -> SourceText:
        return SourceText(text, self.weight, count_before=self.count_before)

    def _chat(self, prompt: str | list[Message], reply: str | None, weight: float | None = None) -> SourceText:
        """A chat of a prompt (or earlier messages) and the reply, if there is one."""
        weight = self.weight if weight is None else weight
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
        if self.scaffolding == "strip":
            plain = "\n\n".join(m["content"] for m in messages)
            return SourceText(plain, weight, count_before=self.count_before)
        return SourceText(tuple(messages), weight, self.thinking, self.count_before)


class _PathSource(_Source):
    path: Path

    def resolve(self, folder: Path) -> "_PathSource":
        """See `_Source.resolve`."""
        return self.model_copy(update={"path": self.path if self.path.is_absolute() else folder / self.path})


class Fields(BaseModel):
    """Names of the columns: either `text`, or `prompt` with or without `completion`, or `messages`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "Fields":
        if sum(v is not None for v in (self.text, self.prompt, self.messages)) != 1:
            raise ValueError("give exactly one of text, prompt, messages")
        if self.completion is not None and self.prompt is None:
            raise ValueError("completion needs prompt")
        return self


class JsonlSource(_PathSource):
    """Lines of JSON, plain or gzipped (`.gz`)."""

    kind: Literal["jsonl"]
    fields: Fields = Fields(text="text")

    def _items(self) -> Iterator[SourceText]:
        for where, row in read_rows(self.path):
            yield from_row(self, self.fields, row, where)


class TextSource(_PathSource):
    """A plain text file as one document (it is cut into windows)."""

    kind: Literal["text"]

    def _items(self) -> Iterator[SourceText]:
        try:
            yield self._text(self.path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            raise CalibrationError(f"cannot read text {self.path}", actual=str(exc)[:200]) from exc


class TinySource(_Source):
    """Training items of the bundled model's tasks with their reference answers. Held-out items cannot be named."""

    kind: Literal["tiny"]
    domain: Literal["code", "math", "choice", "format", "text", "story"]
    count: int = Field(ge=1)
    seed: int = 0
    answer: bool = True
    """False: only the prompt."""

    def _items(self) -> Iterator[SourceText]:
        from trimoe.model.tiny.tasks import generate

        for item in generate(self.domain, "train", self.count, self.seed):
            yield self._chat(item.prompt, item.answer if self.answer else None)


Source = Annotated[JsonlSource | TextSource | TinySource, Field(discriminator="kind")]


def from_row(source: _Source, fields: Fields, row: dict[str, Any], where: str) -> SourceText:
    """A document from one record by its field map. Raises `CalibrationError` naming the record and field."""

    def column(name: str) -> Any:
        if name not in row:
            raise CalibrationError(f"{where} has no field {name!r}", expected=name, actual=", ".join(sorted(row))[:200],
                                   remedy="correct `fields` of this source")  # fmt: skip
        return row[name]

    def string(name: str) -> str:
        value = column(name)
        if not isinstance(value, str) or not value:
            raise CalibrationError(f"field {name!r} of {where} is not text", expected="a non-empty string",
                                   actual=repr(value)[:100])  # fmt: skip
        return value

    if fields.text is not None:
        return source._text(string(fields.text))
    if fields.prompt is not None:
        return source._chat(string(fields.prompt), string(fields.completion) if fields.completion else None)
    messages = column(str(fields.messages))
    good = isinstance(messages, list) and messages and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )  # fmt: skip
    if not good:
        raise CalibrationError(f"field {fields.messages!r} of {where} is not a chat", expected="[{role, content}, ...]",
                               actual=repr(messages)[:100])  # fmt: skip
    return source._chat([{"role": m["role"], "content": m["content"]} for m in messages], None)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of each line of a JSONL file; blank lines are passed over. Raises `CalibrationError`."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise CalibrationError(f"cannot read {path}", expected="JSON lines, plain or gzipped", actual=str(exc)[:200],
                               remedy="check the path in the set file") from exc  # fmt: skip
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise CalibrationError(f"line {number} of {path} is not JSON", actual=line[:100]) from exc
        if not isinstance(row, dict):
            raise CalibrationError(f"line {number} of {path} is not an object", actual=line[:100])
        yield f"line {number} of {path.name}", row
