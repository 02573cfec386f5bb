"""From a calibration set to the windows of one model: read, answer, check for leaks, tokenise, split.

Invariants: everything that the result depends on is in the windows' hash; what users should know about the set
(documents, sources, replies, bench items, overlap with benches) is in `Windows.origin`, and from there in the
statistics file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.calibrate.text.leaks import BenchTexts, SetText, check
from trimoe.calibrate.text.rendering import Tokenizer, documents_of, prompt_ids, tokenizer_of
from trimoe.calibrate.text.replies import answered, answerer_of
from trimoe.calibrate.text.sources import RawReply, SourceText
from trimoe.calibrate.text.windows import Document, Windows, windows_of
from trimoe.errors import CalibrationError
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint

Texts = dict[str, list[SourceText]]
"""Documents by class."""


def tokenise(
    checkpoint: Checkpoint,
    chosen: CalibrationSet,
    shards: int,
    *,
    replies: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    benches: Sequence[BenchTexts] = (),
    plan_only: bool = False,
    progress: Progress | None = None,
) -> Windows:
    """The set as windows of this checkpoint's tokens.

    `replies` is the file of the model's own answers to prompts; missing ones are generated. `benches` are compared with
    the set. With `plan_only` nothing is generated: a missing answer is replaced by as many tokens as it may have, so
    the windows are only good for predicting needs. Raises `CalibrationError`, `Refused` (MultiPL-E), and what
    `answered` raises.
    """
    tokenizer = tokenizer_of(checkpoint.path)
    scope = checkpoint.config.get("text_config") or checkpoint.config
    limits = Limits(scope.get("vocab_size"), scope.get("max_position_embeddings"))

    def fill(texts: Texts) -> tuple[Texts, dict[str, Any]]:
        return answered(texts, answerer_of(checkpoint, tokenizer, device, dtype), tokenizer, replies, progress=progress)

    return tokenised_by(tokenizer, limits, chosen, shards, None if plan_only else fill, benches)


@dataclass(frozen=True)
class Limits:
    """What a model allows, where it says so: ids below `vocabulary`, positions below `context`."""

    vocabulary: Any
    context: Any


def tokenised_by(
    tokenizer: Tokenizer,
    limits: Limits,
    chosen: CalibrationSet,
    shards: int,
    fill: Callable[[Texts], tuple[Texts, dict[str, Any]]] | None,
    benches: Sequence[BenchTexts] = (),
) -> Windows:
    """The set as windows of a tokenizer's tokens.

    `fill` gives missing replies and describes them; without it, a missing reply is replaced by as many tokens as it may
    have.
    """
    texts, made = chosen.texts(), dict[str, Any]()
    if fill is None:
        texts = {name: [_stand_in(text, tokenizer) for text in items] for name, items in texts.items()}
    else:
        texts, made = fill(texts)
    documents = documents_of(texts, tokenizer)
    _require_vocabulary(documents, limits.vocabulary)
    windows = windows_of(documents, chosen.window, shards, chosen.long_documents)
    _require_context(windows, limits.context)
    origin: dict[str, Any] = {**windows.origin, "sources": chosen.describe()}
    if made:
        origin["replies"] = made
    if items := _bench_items(documents):
        origin["bench_items"] = items
    if benches:
        origin["leak_check"] = check(_set_texts(texts), benches)
    return replace(windows, origin=origin)


def _stand_in(text: SourceText, tokenizer: Any) -> SourceText:
    if text.asks is None or text.reply is not None:
        return text
    token = prompt_ids([m for m in text.body if not isinstance(m, str)], text.thinking, tokenizer)[-1]
    return replace(text, reply=RawReply("", ended=False, tokens=(token,) * text.asks))


def _require_vocabulary(documents: Sequence[Document], vocabulary: Any) -> None:
    largest = max(max(d.tokens) for d in documents)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise CalibrationError(
            f"token {largest} is beyond the model's vocabulary",
            expected=f"below {vocabulary}",
            actual=str(largest),
            remedy="use the tokenizer that came with this model",
        )


def _require_context(windows: Windows, context: Any) -> None:
    """Refuse windows beyond the model's context: it was never trained on such positions."""
    longest = max(len(w.tokens) for w in windows.windows)
    if isinstance(context, int) and longest > context:
        raise CalibrationError(
            f"a window of {longest} tokens is longer than the model's context",
            expected=f"at most {context}",
            actual=f"window: {windows.origin['window']}",
            remedy="lower `window` in the set file",
        )


def _bench_items(documents: Sequence[Document]) -> dict[str, list[str]]:
    """bench -> ids of its items in the set."""
    items = sorted({document.item for document in documents if document.item})
    benches = sorted({item.partition("/")[0] for item in items})
    return {b: [i.partition("/")[2] for i in items if i.partition("/")[0] == b] for b in benches}


def _set_texts(texts: dict[str, list[SourceText]]) -> list[SetText]:
    return [SetText(name, text.text, text.item is not None) for name, items in texts.items() for text in items]
