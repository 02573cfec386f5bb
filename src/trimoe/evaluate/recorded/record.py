"""One recorded sample as a typed value, and the place in a file that errors name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from trimoe.errors import BenchError
from trimoe.evaluate.log.records import UNCOUNTED

T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """One recorded reply. `verdict` is the recorded one, None if there is none for the bench's metric.

    `doc` is the row of the data set, None if the record lacks it; `prompt` is what was sent, None if unknown. `epoch`
    counts the replies to one row from 1. `program` says that a program was recorded and not the model's text. `error`
    is the recorder's own fault; such a sample has no verdict.
    """

    doc_id: str
    reply: str
    doc: Mapping[str, Any] | None = None
    prompt: str | None = None
    finish_reason: str = ""
    prompt_tokens: int = UNCOUNTED
    reply_tokens: int = UNCOUNTED
    verdict: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reasoning: str = ""
    reasoning_field: str = ""
    reasoning_tokens: int = UNCOUNTED
    epoch: int = 1
    program: bool = False
    error: str = ""


@dataclass(frozen=True)
class Place:
    """Where a record is: the file and what of it (`line 3`, `item 2`, `samples/1_epoch_1.json`)."""

    file: Path
    at: str

    def typed(self, row: Any, kind: type[T], layout: str) -> T:
        """The row as a `kind`. `BenchError` names file, line and field."""
        try:
            return msgspec.convert(row, kind)
        except msgspec.ValidationError as exc:
            text, _, path = str(exc).partition(" - at `$")
            self.refuse(layout, f"field {path.rstrip('`').lstrip('.')}: {text}" if path.strip("`.") else text)

    def refuse(self, layout: str, actual: str, remedy: str = "") -> NoReturn:
        """Raise `BenchError` for a record that does not fit its layout."""
        raise BenchError(
            f"{self.file} {self.at} is not a recorded sample",
            expected=f"a record of {layout}",
            actual=actual,
            remedy=remedy or "correct that record, or record the samples again",
        )


def counted(tokens: int | None) -> int:
    """A token count as a log stores it."""
    return UNCOUNTED if tokens is None else tokens
