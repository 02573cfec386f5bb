"""Rendering of documents to token ids: chat template, raw replies, counted positions and kinds of position.

Invariants: a chat is rendered by the model's template and tokenised without further special tokens; a raw reply follows
the opening of the assistant's turn unchanged, because templates drop a model's thinking from finished turns; plain text
gets the tokenizer's own special tokens (a BOS where the model expects one).
Not guaranteed: that a raw reply known only as text gets the tokens that the model chose. It is tokenised together with
the prompt, as the model would read it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from trimoe.calibrate.text.records import Message
from trimoe.calibrate.text.sources import SourceText
from trimoe.calibrate.text.windows import OWN, PROMPT, RECORDED, Document
from trimoe.errors import CalibrationError
from trimoe.model.chat import rendered_chat
from trimoe.model.tokenizer import load_tokenizer


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    chat_template: Any
    all_special_ids: Any
    added_tokens_decoder: Any
    unk_token_id: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
    def __call__(self, text: str, *, add_special_tokens: bool = ..., verbose: bool = ...) -> Any: ...
    def get_vocab(self) -> Any: ...


def tokenizer_of(path: Path) -> Any:
    """The tokenizer of a checkpoint. Raises `CheckpointError` if it cannot be loaded."""
    return load_tokenizer(path)


def documents_of(texts: dict[str, list[SourceText]], tokenizer: Tokenizer) -> list[Document]:
    """Render and tokenise. Raises `CalibrationError` for a chat if the tokenizer has no chat template."""
    return [_document(name, text, tokenizer) for name, items in texts.items() for text in items]


def prompt_ids(messages: Sequence[Message], thinking: bool | None, tokenizer: Tokenizer) -> list[int]:
    """The rendered chat up to and including the marker that opens the assistant's turn."""
    return _ids(tokenizer, _rendered(messages, thinking, tokenizer, open_turn=True))


def end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """The tokens with which the template closes an assistant's turn, up to the first special one; empty if none.

    Some templates close a turn only if another one follows.
    """
    probe = "trimoe"
    last = [{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}]
    special = _special(tokenizer)
    for messages in (last, [*last, {"role": "user", "content": "?"}]):
        ids = _ids(tokenizer, _rendered(messages, None, tokenizer, open_turn=False).rpartition(probe)[2])
        for at, token in enumerate(ids):
            if token in special:
                return ids[: at + 1]
        if ids and messages is last:
            return ids
    return []


def _document(category: str, text: SourceText, tokenizer: Tokenizer) -> Document:
    if text.asks is not None and text.reply is None:
        raise CalibrationError(
            f"{text.where} of class {category} has no stored reply",
            expected="a generated reply",
            remedy="calibrate with the model, or give `replies` in the set file",
        )
    ids = _tokens(text, tokenizer)
    if not ids:
        raise CalibrationError(
            f"{text.where or 'a document'} of class {category} has no tokens",
            expected="at least one token",
            remedy="remove the empty document",
        )
    counted = None
    if text.count_before is not None:
        wanted = tokenizer.get_vocab().get(text.count_before)
        if not isinstance(wanted, int):
            raise CalibrationError(
                f"{text.count_before!r} is not one token of this model",
                expected="a token string",
                remedy="write count_before exactly as in the vocabulary",
            )
        counted = tuple(following == wanted for following in (*ids[1:], None))
    positions = _positions(text, ids, tokenizer)
    return Document(category, tuple(int(i) for i in ids), text.weight, counted, text.item, text.where, positions)


def _positions(text: SourceText, ids: Sequence[int], tokenizer: Tokenizer) -> bytes | None:
    """The kind of each position: that of the token it predicts. None for plain text."""
    if isinstance(text.body, str) or text.strip:
        return None
    kinds = bytearray([PROMPT]) * len(ids)
    if text.reply is not None:
        start = _common(ids, _ids(tokenizer, _rendered(text.body, text.thinking, tokenizer, open_turn=True)))
        _mark(kinds, start, len(ids), RECORDED if text.asks is None else OWN)
        return bytes(kinds)
    for turn, message in enumerate(text.body):
        if message["role"] == "assistant" and turn:
            before, after = text.body[:turn], text.body[: turn + 1]
            opened = _ids(tokenizer, _rendered(before, text.thinking, tokenizer, open_turn=True))
            closed = _ids(tokenizer, _rendered(after, text.thinking, tokenizer, open_turn=False))
            _mark(kinds, _common(ids, opened), _common(ids, closed), RECORDED)
    return bytes(kinds)


def _mark(kinds: bytearray, start: int, end: int, kind: int) -> None:
    """The tokens `start` to `end` (exclusive) are a reply: the positions before each of them predict it."""
    first = max(0, start - 1)
    kinds[first : end - 1] = bytes([kind]) * max(0, end - 1 - first)


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """Tokens at the start that both have. A template may write an open turn unlike a finished one, and a tokenizer may
    merge the last token of a prompt with the first of the reply."""
    return next(
        (at for at, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other),
        min(len(ids), len(others)),
    )


def _tokens(text: SourceText, tokenizer: Tokenizer) -> list[int]:
    if isinstance(text.body, str):
        return _ids(tokenizer, text.body, special=True)
    if text.strip:
        return _without_markers(text.text, tokenizer)
    if text.reply is None:
        open_turn = text.body[-1]["role"] != "assistant"
        return _ids(tokenizer, _rendered(text.body, text.thinking, tokenizer, open_turn=open_turn))
    prompt = _rendered(text.body, text.thinking, tokenizer, open_turn=True)
    opened = _ids(tokenizer, prompt)
    if text.reply.tokens is not None:
        return [*opened, *text.reply.tokens]
    ids = _ids(tokenizer, prompt + text.reply.text)
    most = None if text.reply.limit is None else len(opened) + text.reply.limit
    if most is not None and len(ids) > most:
        return ids[:most]
    return [*ids, *end_of_turn(tokenizer)] if text.reply.ended else ids


def _rendered(messages: Iterable[Message], thinking: bool | None, tokenizer: Tokenizer, *, open_turn: bool) -> str:
    if not tokenizer.chat_template:
        raise CalibrationError(
            "the calibration set contains chats but the model has no chat template",
            expected="chat_template.jinja",
            actual="a tokenizer without one",
            remedy="use sources with a text field, or add the model's template",
        )
    extra = {} if thinking is None else {"enable_thinking": thinking}
    return rendered_chat(
        tokenizer,
        messages,
        open_turn=open_turn,
        error=CalibrationError,
        remedy="correct the roles and turns of this chat of the set, or chat_template.jinja",
        **extra,
    )


def _without_markers(text: str, tokenizer: Tokenizer) -> list[int]:
    """Plain text without special tokens, except those that open a text (BOS)."""
    special = _special(tokenizer)
    ids = _ids(tokenizer, text, special=True)
    start = next((i for i, token in enumerate(ids) if token not in special), len(ids))
    bare = len(ids) - len(_ids(tokenizer, text))  # special tokens that the tokenizer itself has added
    return ids[: min(start, bare)] + [token for token in ids if token not in special]


def _ids(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    # verbose=False: a document may be longer than the model's context, since it is cut into windows
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _special(tokenizer: Tokenizer) -> set[int]:
    """Ids of the tokens that are not text: those with a role (BOS, ...), and those marked special like turn markers.

    The unknown token counts as text.
    """
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (marked | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
