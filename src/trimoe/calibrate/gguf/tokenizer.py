"""The tokenizer of a GGUF model: llama.cpp's own, and the chat template of the file, as `rendering` uses a tokenizer.

Invariants: special tokens in a text are recognised, as fast tokenizers of transformers do; the template runs in a
sandbox with the functions that transformers gives to templates.
Not guaranteed: the same ids as the checkpoint's tokenizer for every text. llama.cpp implements pre-tokenizers anew.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from trimoe.calibrate.gguf.program import Conversation, tokens_of
from trimoe.errors import CheckpointError
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.model import GgufModel

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


@dataclass(frozen=True)
class AddedToken:
    """What `rendering` asks of an added token."""

    special: bool


class GgufTokenizer:
    """llama.cpp's tokenizer in a process of its own, which `close` ends."""

    def __init__(self, model: GgufModel, tools: LlamaCpp) -> None:
        tokens, types = model.gguf.get("tokenizer.ggml.tokens"), model.gguf.get("tokenizer.ggml.token_type")
        if not isinstance(tokens, list) or not isinstance(types, list) or len(tokens) != len(types):
            raise CheckpointError(
                f"{model.path} has no tokenizer",
                expected="tokenizer.ggml.tokens and tokenizer.ggml.token_type of equal length",
                remedy="convert the model again, together with its tokenizer files",
            )
        self._tokens: list[str] = tokens
        self._get = model.gguf.get
        self.unk_token_id = self._id("unknown")
        roles = ("bos", "eos", "unknown", "seperator", "padding", "cls", "mask")  # llama.cpp spells it so
        self.all_special_ids = sorted({i for role in roles if (i := self._id(role)) is not None})
        self.chat_template: str | None = model.gguf.get("tokenizer.chat_template")
        self.added_tokens_decoder = {
            i: AddedToken(kind == _CONTROL) for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)
        }
        self._conversation = Conversation(tools, "text", model.path)

    def close(self) -> None:
        """End the process."""
        self._conversation.close()

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._id("eos")

    def end_ids(self) -> set[int]:
        """Ids that end a reply, as the file names them."""
        return {i for role in ("eos", "eot", "eom") if (i := self._id(role)) is not None}

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return {token: i for i, token in enumerate(self._tokens)}

    def apply_chat_template(self, conversation: Any, **arguments: Any) -> str:
        """The chat as text. Raises what jinja2 raises."""
        arguments.pop("tokenize", None)
        special = {f"{role}_token": self._token(role) for role in ("bos", "eos")}
        special |= {"unk_token": self._token("unknown"), "pad_token": self._token("padding")}
        return str(self._template.render(messages=conversation, tools=None, documents=None, **special, **arguments))

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        """Token ids of a text."""
        return {"input_ids": list(tokens_of(self._conversation, text, add_special_tokens))}

    def decode(self, ids: Any) -> str:
        """The text of token ids, special tokens included."""
        request = {"tokens": [int(i) for i in ids], "special": True}
        return str(self._conversation.ask(request)["text"])

    @cached_property
    def _template(self) -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.chat_template or "")

    def _id(self, role: str) -> int | None:
        value = self._get(f"tokenizer.ggml.{role}_token_id")
        return value if type(value) is int and 0 <= value < len(self._tokens) else None

    def _token(self, role: str) -> str:
        found = self._id(role)
        return "" if found is None else self._tokens[found]


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
