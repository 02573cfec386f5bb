"""Renders chats with a model's own template. A template comes with the checkpoint: its faults are bad input."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from trimoe.errors import BadInput


class ChatTokenizer(Protocol):
    """What a tokenizer of transformers offers here."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The chat as text."""
        ...


def rendered_chat(
    tokenizer: ChatTokenizer,
    turns: Iterable[Mapping[str, str]],
    *,
    open_turn: bool = True,
    error: type[BadInput] = BadInput,
    remedy: str = "correct chat_template.jinja, or take the template of the original model",
    **extra: Any,
) -> str:
    """The text of a chat; `open_turn` ends it with the marker that opens a reply, `extra` goes to the template.

    Raises `error` where the template refuses the chat, does what the sandbox of transformers forbids, or fails.
    """
    from jinja2 import TemplateError

    try:
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=open_turn, **extra))
        if not text.strip():
            raise ValueError("the rendered chat is empty")
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as exc:
        raise error(
            "the model's chat template cannot render a chat",
            expected="a template that accepts these roles and turns and only formats text",
            actual=f"{type(exc).__name__}: {exc}"[:200],
            remedy=remedy,
        ) from exc
    return text
