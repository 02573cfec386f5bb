"""Calibration text for llama-imatrix: documents of a set, balanced over its classes by tokens.

llama-imatrix tokenises one text and cuts it into chunks. A text dominated by one class starves the experts of the
others (a code-heavy one left a quarter of the experts of seven layers without data), so documents are taken from the
class with the fewest tokens so far, until one class runs out or there are enough.
Invariant: a function of the set and the tokenizer alone; totals of classes differ by at most one document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.calibrate.text.calibration import CalibrationSet, Tokenizer
from trimoe.calibrate.text.sources import SourceText
from trimoe.errors import CalibrationError, CheckpointError
from trimoe.model.chat import rendered_chat
from trimoe.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class BalancedText:
    """The text and the number of tokens of each class."""

    text: str
    tokens: dict[str, int]

    @property
    def total(self) -> int:
        """Tokens of all classes."""
        return sum(self.tokens.values())


def balance(documents: Mapping[str, Sequence[tuple[str, int]]], enough: int) -> BalancedText:
    """Take (text, tokens) documents from the class with the fewest tokens so far; ties in the order of the classes."""
    taken, at, parts = dict.fromkeys(documents, 0), dict.fromkeys(documents, 0), []
    while sum(taken.values()) < enough:
        name = min(taken, key=lambda n: taken[n])
        if at[name] == len(documents[name]):
            break
        text, tokens = documents[name][at[name]]
        parts.append(text)
        taken[name] += tokens
        at[name] += 1
    return BalancedText("\n\n".join(parts) + "\n", taken)


def calibration_text(path: Path, model: Path, enough: int) -> BalancedText:
    """The text of a calibration set for a checkpoint's tokenizer. Raises `CalibrationError`; needs extra 'torch'."""
    chosen = CalibrationSet.load(path)
    try:
        tokenizer = load_tokenizer(model)
    except CheckpointError as exc:
        raise CalibrationError(
            exc.subject,
            expected=exc.expected,
            actual=exc.actual,
            remedy="give a directory with the tokenizer files of this model: --tokenizer DIRECTORY",
        ) from exc
    documents = {name: [_document(item, tokenizer) for item in items] for name, items in chosen.texts().items()}
    text = balance(documents, enough)
    if not text.total:
        raise CalibrationError(
            f"calibration set {path} contains no text", expected="documents with tokens", remedy="add documents"
        )
    return text


def _document(item: SourceText, tokenizer: Tokenizer) -> tuple[str, int]:
    if isinstance(item.body, str):
        text = item.body
    elif not tokenizer.chat_template:
        raise CalibrationError(
            "the calibration set contains chats, but the model has no chat template",
            expected="chat_template.jinja",
            remedy="use sources with a text field",
        )
    else:
        extra: dict[str, Any] = {} if item.thinking is None else {"enable_thinking": item.thinking}
        open_turn = item.body[-1]["role"] != "assistant"
        text = rendered_chat(tokenizer, item.body, open_turn=open_turn, error=CalibrationError, **extra)
        # llama-imatrix adds a beginning-of-sequence token to every chunk itself.
        text = text.removeprefix(str(getattr(tokenizer, "bos_token", None) or ""))
    return text, len(tokenizer(text, add_special_tokens=False)["input_ids"])
