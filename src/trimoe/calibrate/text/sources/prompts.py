"""Source of prompts that the model answers itself and whose answers are measured (tier A of the protocol)."""

from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from trimoe.calibrate.text.records import Fields, Message, Record, checked, messages_of, read_records
from trimoe.calibrate.text.sources.base import BaseSource, Count, RawReply, SourceText, user
from trimoe.errors import CalibrationError
from trimoe.io import datafile
from trimoe.io.canonical import canonical_json
from trimoe.io.paths import Place

Builtin = Literal["math", "logic", "code", "science", "creative"]


class PromptsSource(BaseSource, frozen=True, kw_only=True, tag="prompts"):
    """Prompts answered greedily by the model that is calibrated; prompt and answer together are the document.

    Generation needs the whole model in memory. `replies` takes the answers from a file instead, which may come from
    another machine, a quantized file or any server.
    """

    builtin: Builtin | None = None
    """One of the shipped lists of eight prompts."""
    path: Path | None = None
    """JSON lines with the prompts, relative to the set file."""
    fields: Fields = Fields(prompt="prompt")
    """Which columns of `path` make the prompt: `prompt`, or `messages` that do not end with the assistant."""
    new_tokens: Count = 128
    """Longest answer in tokens; a longer one is truncated."""
    thinking: bool | None = True
    """Passed to the chat template as `enable_thinking`."""
    replies: Path | None = None
    """JSON lines with `prompt` (or `messages`) and `reply`, relative to the set file."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give exactly one of builtin, path")
        if self.fields.text or self.fields.completion or self.fields.reply:
            raise ValueError("fields of prompts are prompt or messages: the model writes the reply")

    def resolve(self, place: Place) -> "PromptsSource":
        """See `BaseSource.resolve`."""
        return msgspec.structs.replace(
            self, path=self.path and place(self.path), replies=self.replies and place(self.replies)
        )

    @property
    def label(self) -> str:
        """Kind and list."""
        return f"prompts {self.builtin or (self.path and self.path.name)}"

    def describe(self) -> dict[str, Any]:
        """See `BaseSource.describe`."""
        made = self.replies.name if self.replies else "the model"
        return {**super().describe(), "new_tokens": self.new_tokens, "thinking": self.thinking, "replies": made}

    def _items(self) -> Iterator[SourceText]:
        given = read_replies(self.replies, self.new_tokens) if self.replies else None
        for text in self._prompts():
            messages = [m for m in text.body if not isinstance(m, str)]  # always a chat: see __post_init__
            if messages[-1]["role"] == "assistant":
                raise CalibrationError(
                    f"{text.where} ends with the assistant's turn",
                    expected="an open question",
                    remedy="leave out the last message",
                )
            reply = None
            if given is not None:
                reply = given.get(prompt_key(messages))
                if reply is None:
                    raise CalibrationError(
                        f"{self.replies} has no reply to {text.where}",
                        expected="one reply per prompt",
                        actual=f"{len(given)} replies to other prompts",
                        remedy="add the missing replies, or remove `replies` to let the model answer",
                    )
            yield self.chat(messages, text.where, reply=reply, asks=self.new_tokens, item=text.item)

    def _prompts(self) -> Iterator[SourceText]:
        if self.builtin is not None:
            for number, prompt in enumerate(builtin_prompts()[self.builtin], 1):
                yield self.chat([user(prompt)], f"prompt {number} of {self.builtin}")
        elif self.path is not None:
            for record in read_records(self.path):
                yield self.from_record(record, self.fields)


@cache
def builtin_prompts() -> dict[str, list[str]]:
    """The shipped prompts: class -> eight questions."""
    file = resources.files("trimoe.calibrate.text") / "prompts.yaml"
    return datafile.load(dict[str, list[str]], file, "the shipped prompts")


def prompt_key(messages: list[Message]) -> bytes:
    """The key under which the reply to a prompt is found."""
    return canonical_json(messages)


def read_replies(path: Path, limit: int) -> dict[bytes, RawReply]:
    """prompt_key -> reply of a file of replies. Raises `CalibrationError`."""
    replies: dict[bytes, RawReply] = {}
    for record in read_records(path):
        messages = reply_messages(record)
        text = checked(record.row.get("reply"), f"field 'reply' of {record.where}")
        key = prompt_key(messages)
        if key in replies and replies[key].text != text:
            raise CalibrationError(
                f"{record.where} is a second, different reply to the same prompt",
                expected="one reply per prompt",
                remedy="remove one of them",
            )
        replies[key] = RawReply(text, record.row.get("finish_reason") == "stop", limit=limit)
    return replies


def reply_messages(record: Record) -> list[Message]:
    """The prompt that a row of a file of replies answers."""
    if "messages" in record.row:
        return messages_of(record.row["messages"], f"field 'messages' of {record.where}")
    return [user(checked(record.row.get("prompt"), f"field 'prompt' of {record.where}"))]
