"""Common part of all kinds of source: the shared keys of the set file, and how a record becomes a document.

A source yields `SourceText`s: plain text, or the messages of a chat that the model's template renders later, optionally
followed by the model's raw reply.
Invariants: unknown keys are refused; order and content are a function of the data alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from trimoe.calibrate.text.leaks import identify
from trimoe.calibrate.text.multipl_e import refuse_row
from trimoe.calibrate.text.records import Fields, Message, Record, column, messages_of, string
from trimoe.errors import CalibrationError
from trimoe.io.datafile import Data
from trimoe.io.paths import Place

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True)
class RawReply:
    """What a model wrote after the opening of its turn, markers of its thinking included.

    `ended`: it closed the turn (otherwise it was cut off). `tokens` are its ids if known, the closing token included;
    `limit` truncates a reply of which only the text is known.
    """

    text: str
    ended: bool
    tokens: tuple[int, ...] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class SourceText:
    """One document before tokenisation."""

    body: str | tuple[Message, ...]
    weight: float = 1.0
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`."""
    count_before: str | None = None
    """Measure only positions that predict this token."""
    strip: bool = False
    """Remove the chat template's markers."""
    reply: RawReply | None = None
    """Follows the opened turn unchanged by the template."""
    asks: int | None = None
    """The reply is still to be generated, with at most this many tokens."""
    where: str = ""
    """Names the document in messages."""
    item: str | None = None
    """BENCH/ID if this is deliberately an item of a bench."""

    @property
    def text(self) -> str:
        """All of its text, without markers, for checks of content."""
        parts = [self.body] if isinstance(self.body, str) else [m["content"] for m in self.body]
        return "\n\n".join([*parts, self.reply.text] if self.reply else parts)


class BaseSource(Data, frozen=True, kw_only=True, tag_field="kind"):
    """Keys of every source. Each kind is a subclass, told apart by the key `kind`."""

    weight: Positive = 1.0
    """How many times each document counts."""
    skip: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Skip this many documents first; with `limit` this gives disjoint parts for separate runs."""
    limit: Count | None = None
    """Take at most this many documents."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; if absent, the template's default applies."""
    scaffolding: Literal["keep", "strip"] = "keep"
    """`strip`: prompt and reply as plain text, without the chat template's markers and special tokens."""
    count_before: str | None = None
    """Measure only positions that predict this token, for example the end of the turn."""
    bench: str | None = None
    """The documents are deliberately items of this bench: their ids are recorded in the statistics."""

    @property
    def kind(self) -> str:
        """The value of the key `kind`."""
        return str(self.__struct_config__.tag)

    def resolve(self, place: Place) -> "BaseSource":
        """The same source with its paths found by `place`, which refuses those outside the set file's folder."""
        return self

    def _items(self) -> Iterator[SourceText]:
        raise NotImplementedError

    def read(self) -> list[SourceText]:
        """All documents of this source, in order. Raises `CalibrationError` if it is unreadable or has none."""
        end = None if self.limit is None else self.skip + self.limit
        result = list(islice(self._items(), self.skip, end))
        if not result:
            raise CalibrationError(
                f"source {self.label} has no documents",
                expected="at least one document",
                actual=f"none after skip {self.skip}" if self.skip else "none",
                remedy="check the source's path and filters, or remove the source",
            )
        return result

    @property
    def label(self) -> str:
        """A short description of the source, without its folder."""
        return self.kind

    def describe(self) -> dict[str, Any]:
        """The entry of this source in the statistics file; without folders, so that moving the data changes nothing."""
        return {"kind": self.kind, "label": self.label, "weight": self.weight}

    def plain(self, text: str, where: str, item: str | None = None) -> SourceText:
        """A document of plain text."""
        return SourceText(text, self.weight, count_before=self.count_before, where=where, item=item)

    def chat(
        self,
        messages: list[Message],
        where: str,
        *,
        reply: RawReply | None = None,
        weight: float = 1.0,
        asks: int | None = None,
        item: str | None = None,
    ) -> SourceText:
        """A document of a chat; `weight` multiplies the source's."""
        return SourceText(
            tuple(messages),
            self.weight * weight,
            self.thinking,
            self.count_before,
            self.scaffolding == "strip",
            reply,
            asks,
            where,
            item,
        )

    def from_record(self, record: Record, fields: Fields) -> SourceText:
        """A document from a record by its field map. Raises `CalibrationError` naming the record and the field."""
        refuse_row(record.row, record.where)
        item = f"{self.bench}/{identify(record.row, record.number)}" if self.bench else None
        if fields.text is not None:
            return self.plain(string(record, fields.text), record.where, item)
        if fields.messages is not None:
            what = f"field {fields.messages!r} of {record.where}"
            return self.chat(messages_of(column(record, fields.messages), what), record.where, item=item)
        messages = [user(string(record, str(fields.prompt)))]
        if fields.completion:
            messages.append({"role": "assistant", "content": string(record, fields.completion)})
        reply = RawReply(string(record, fields.reply), ended=False) if fields.reply else None
        return self.chat(messages, record.where, reply=reply, item=item)


class PathSource(BaseSource, frozen=True, kw_only=True):
    """A source that is a file or folder."""

    path: Path
    """Relative to the set file."""

    def resolve(self, place: Place) -> "PathSource":
        """See `BaseSource.resolve`."""
        return msgspec.structs.replace(self, path=place(self.path))

    @property
    def label(self) -> str:
        """Kind and file name."""
        return f"{self.kind} {self.path.name}"


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}
