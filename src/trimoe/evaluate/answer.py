"""Reads one chat completion: its text, the field of the text, how it ended, or the fault that makes it unusable.

Invariants: the content is the answer. Reasoning is kept separately with the name of its field, and replaces the content
only if that is empty, with a mark. A reply of the wrong form, model or length is a `Fault`, never an answer. Pure
functions of bytes.
Not guaranteed: that a server tells the truth about its model; llama-server repeats whatever name was requested.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimoe.evaluate import markers
from trimoe.evaluate.log.records import UNCOUNTED

FaultKind = Literal[
    "connection",
    "timeout",
    "deadline",
    "overloaded",
    "server error",
    "refused",
    "slot overflow",
    "invalid reply",
    "wrong model",
    "duplicate id",
    "cap ignored",
    "server changed",
]
PASSING: frozenset[FaultKind] = frozenset({"connection", "timeout", "overloaded", "server error", "invalid reply"})

REASONING_FIELDS = ("reasoning_content", "reasoning")  # llama.cpp and older vLLM; newer vLLM, ollama
ENDINGS = ("stop", "length")
TOLERANCE = 16  # tokens that a server may count beyond the cap (end token, closing channel)

FALLBACK = "read from the reasoning, the content is empty"
HALF_OPEN = "thinking was opened and never closed"
LEAK = "template marker in the content"


class Fault(Exception):
    """An unusable or missing reply. `passing` faults are retried."""

    def __init__(self, kind: FaultKind, detail: str, *, status: int | None = None, raw: bytes | None = None) -> None:
        self.kind, self.detail, self.status, self.raw = kind, detail, status, raw
        super().__init__(f"{kind}: {detail}")

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in PASSING


@dataclass(frozen=True)
class Answer:
    """A valid reply. Token counts are the server's, or `UNCOUNTED`; `reply_tokens` includes the reasoning."""

    reply_id: str
    content: str
    reasoning: str
    reasoning_field: str
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    reasoning_tokens: int
    build: str
    marks: tuple[str, ...]

    @property
    def fallback(self) -> bool:
        """Whether the reasoning is scored because the content is empty."""
        return FALLBACK in self.marks


def read_answer(raw: bytes, models: Sequence[str], cap: int) -> Answer:
    """The answer in a response body; `Fault` if it is not one. `models` are the acceptable model names."""
    body = _object(raw)
    if "error" in body and "choices" not in body:
        raise Fault("invalid reply", f"an error with status 200: {_short(body['error'])}", raw=raw)
    name = body.get("model")
    if not isinstance(name, str):
        raise Fault("invalid reply", f"the reply names no model: {_short(name)}", raw=raw)
    # a server may name the owner only in its replies
    if name not in models and ("/" in models[0] or name.rpartition("/")[2] != models[0]):
        raise Fault("wrong model", f"answered by {name!r}, requested was {models[0]!r}", raw=raw)
    choice = _only_choice(body, raw)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise Fault("invalid reply", "the choice has no message", raw=raw)
    content, (where, reasoning) = _text(message, "content", raw), _reasoning(message, raw)
    if message.get("tool_calls") and not content:
        raise Fault("refused", "the server parsed the reply as a tool call; serve without a tool parser", raw=raw)
    finish = choice.get("finish_reason")
    if finish not in ENDINGS:
        raise Fault("invalid reply", f"finish reason {finish!r}, expected {' or '.join(ENDINGS)}", raw=raw)
    prompt_tokens, reply_tokens, apart = _usage(body, raw)
    if reply_tokens > cap + TOLERANCE:
        raise Fault("cap ignored", f"{reply_tokens} tokens, but at most {cap} were requested", raw=raw)
    reply_id, build = body.get("id"), body.get("system_fingerprint")
    return Answer(
        reply_id if isinstance(reply_id, str) else "",
        content,
        reasoning,
        where,
        str(finish),
        prompt_tokens,
        reply_tokens,
        apart,
        build if isinstance(build, str) else "",
        tuple(_marks(content, reasoning)),
    )


def _marks(content: str, reasoning: str) -> list[str]:
    marks = []
    if not content.strip() and reasoning.strip():
        marks.append(FALLBACK)
    if markers.half_open(content) or markers.half_open(reasoning):
        marks.append(HALF_OPEN)
    if seen := markers.found(content):
        marks.append(f"{LEAK}: {', '.join(sorted(seen))}")
    return marks


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as exc:
        raise Fault("invalid reply", f"not JSON: {exc}", raw=raw) from exc
    if not isinstance(body, Mapping):
        raise Fault("invalid reply", f"JSON, but not an object: {_short(body)}", raw=raw)
    return body


def _only_choice(body: Mapping[str, Any], raw: bytes) -> Mapping[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        count = len(choices) if isinstance(choices, list) else "no list"
        raise Fault("invalid reply", f"one choice was requested, the reply has {count}", raw=raw)
    return choices[0]


def _text(message: Mapping[str, Any], field: str, raw: bytes) -> str:
    """A field's text. Null and absent are empty; a list of text parts is joined."""
    value = message.get(field)
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in value):
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise Fault("invalid reply", f"{field} is not text: {_short(value)}", raw=raw)
    return value


def _reasoning(message: Mapping[str, Any], raw: bytes) -> tuple[str, str]:
    """The first reasoning field that is not empty, with its name."""
    for field in REASONING_FIELDS:
        if text := _text(message, field, raw):
            return field, text
    return "", ""


def _usage(body: Mapping[str, Any], raw: bytes) -> tuple[int, int, int]:
    """Tokens of the prompt, of the whole reply, and of the reasoning in it."""
    usage = body.get("usage")
    if usage is None:
        return UNCOUNTED, UNCOUNTED, UNCOUNTED
    if not isinstance(usage, Mapping):
        raise Fault("invalid reply", f"usage is not an object: {_short(usage)}", raw=raw)
    details = usage.get("completion_tokens_details")
    apart = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), apart)
    for count in counts:
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
            raise Fault("invalid reply", f"a token count is not a whole number: {_short(count)}", raw=raw)
    prompt, reply, thought = (UNCOUNTED if count is None else count for count in counts)
    # some servers send 0 for counts they do not have
    return prompt, reply, thought if thought > 0 else UNCOUNTED


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."
