"""Sources of local files, and of the bundled model's tasks."""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from trimoe.calibrate.text.records import Fields, Record, checked, read_records, read_text
from trimoe.calibrate.text.sources.base import BaseSource, PathSource, SourceText, user

Only = dict[str, str | bool | int]


def wanted(record: Record, only: Only) -> bool:
    """Whether every named column has the named value (true is not 1)."""
    return all(type(record.row.get(k)) is type(v) and record.row[k] == v for k, v in only.items())


class JsonlSource(PathSource, frozen=True, kw_only=True, tag="jsonl"):
    """JSON lines, plain or gzipped."""

    fields: Fields = Fields(text="text")
    """Which columns make the document."""
    only: Only = msgspec.field(default_factory=dict)
    """Take only records whose columns have these values, for example `{passed: true}`."""

    def _items(self) -> Iterator[SourceText]:
        for record in read_records(self.path):
            if wanted(record, self.only):
                yield self.from_record(record, self.fields)


class TextSource(PathSource, frozen=True, kw_only=True, tag="text"):
    """A plain text file as one document, which is divided into windows."""

    def _items(self) -> Iterator[SourceText]:
        yield self.plain(checked(read_text(self.path), f"text {self.path.name}"), self.path.name)


class TinySource(BaseSource, frozen=True, kw_only=True, tag="tiny"):
    """Training items of the bundled model's tasks with their reference answers. Held-out items cannot be drawn."""

    domain: Literal["code", "math", "choice", "format", "text", "story"]
    """Which task."""
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    """How many items are drawn, at most 100,000; further sources with other seeds draw more."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Another seed draws other items."""
    answer: bool = True
    """`false`: only the prompt."""

    def _items(self) -> Iterator[SourceText]:
        from trimoe.model.tiny.tasks import generate

        for item in generate(self.domain, "train", self.count, self.seed):
            answer = [{"role": "assistant", "content": item.answer}] if self.answer else []
            yield self.chat([user(item.prompt), *answer], item.item_id)

    @property
    def label(self) -> str:
        """Kind and domain."""
        return f"tiny {self.domain}"
