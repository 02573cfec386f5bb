"""Generates the model's own greedy replies to prompts of a calibration set, once, and keeps them in a file.

The file is JSON lines beside the statistics: for each prompt its text, the reply, the reply's token ids, and a key over
model, dtype and prompt tokens. A reply that is stored under its key is never generated again.
Invariants: batches are cut from the whole list, and a batch with a missing reply is generated completely, so a resumed
run ends with the same bytes as an undisturbed one.
Not guaranteed: the same replies on another device or another version of torch, where a tie may be decided differently.
The statistics are a function of the file, not of the generation. The whole model must fit into memory.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

from trimoe.calibrate.plan import available_memory
from trimoe.calibrate.text.records import Message
from trimoe.calibrate.text.rendering import Tokenizer, end_of_turn, prompt_ids
from trimoe.calibrate.text.sources import RawReply, SourceText
from trimoe.errors import BadInput, CalibrationError, MissingPrerequisite
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_file, sha256_json
from trimoe.io.progress import Progress, silent
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.generate import Generator, Reply

BATCH = 8
"""Prompts per batch. Replies depend on it, because float sums depend on the padding."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer: token ids `[P]` up to the opening of the reply, and at most `new_tokens` of reply."""

    key: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    new_tokens: int


class Answering(Protocol):
    """A loaded model that answers prompts of token ids greedily."""

    @property
    def context(self) -> int | None:
        """The model's context in tokens, if it states one."""

    def reply(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Reply]:
        """Replies to one batch, in its order."""


@dataclass(frozen=True)
class Answerer:
    """A model that can be loaded to answer. `fingerprint` and `dtype` identify its replies; `load` gets the number of
    tokens of the longest prompt with its reply."""

    fingerprint: str
    dtype: str
    load: Callable[[int], AbstractContextManager[Answering]]


def answerer_of(checkpoint: Checkpoint, tokenizer: Tokenizer, device: str, dtype: str) -> Answerer:
    """A checkpoint as a model that answers. Loading it raises `MissingPrerequisite` if it does not fit into memory."""

    def load(_: int) -> AbstractContextManager[Answering]:
        require_memory(checkpoint, device, dtype)
        return nullcontext(_generator(checkpoint, tokenizer, device, dtype))

    return Answerer(checkpoint.fingerprint, dtype, load)


def path_beside(out: Path) -> Path:
    """The file of replies of the statistics file `out`."""
    return out.with_name(out.name + ".replies.jsonl")


def answered(
    texts: dict[str, list[SourceText]],
    answerer: Answerer,
    tokenizer: Tokenizer,
    path: Path | None,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, list[SourceText]], dict[str, Any]]:
    """The texts with missing replies filled in from the file `path`, after generating those the file does not have.

    The second value describes the file for the metadata of the statistics; empty if no reply was missing. Raises
    `CalibrationError` (no chat template, no `path`), `CheckpointError`, `MissingPrerequisite` (the model does not fit
    into memory).
    """
    open_texts = [text for items in texts.values() for text in items if text.asks is not None and text.reply is None]
    if not open_texts:
        return texts, {}
    if path is None:
        raise CalibrationError(
            f"{open_texts[0].where} has no stored reply, and the run has no file to store one in",
            expected="an output file, or a file of replies",
            remedy="calibrate with an output file, or set `replies` in the calibration set",
        )
    requests = {id(text): _request(text, answerer, tokenizer) for text in open_texts}
    rows = make_replies(list(requests.values()), answerer, path, progress)

    def fill(text: SourceText) -> SourceText:
        request = requests.get(id(text))
        if request is None:
            return text
        row = rows[request.key]
        return replace(text, reply=RawReply(row["reply"], row["finish_reason"] == "stop", tuple(row["reply_tokens"])))

    about = {
        "sha256": sha256_file(path),
        "rows": len(rows),
        "reply_tokens": sum(len(r["reply_tokens"]) for r in rows.values()),
        "stopped": sum(r["finish_reason"] == "stop" for r in rows.values()),
    }
    return {name: [fill(text) for text in items] for name, items in texts.items()}, about


def make_replies(
    requests: Sequence[Request],
    answerer: Answerer,
    path: Path,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Rows by key. Afterwards, the file at `path` holds exactly the replies to these requests."""
    wanted = list({request.key: request for request in requests}.values())
    journal = path.with_name(f".{path.name}.journal")
    known = {**_read(path), **_read(journal)}
    batches = _batches(wanted)
    missing = [batch for batch in batches if any(request.key not in known for request in batch)]
    if missing:
        done = sum(len(b) for b in batches) - sum(len(b) for b in missing)
        tell = progress or silent
        tell(done, len(wanted), "loading the model")
        longest = max(len(request.ids) + request.new_tokens for request in wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        with answerer.load(longest) as generator, journal.open("ab") as out:
            _require_room(generator, longest)
            for batch in missing:
                tell(done, len(wanted), "replies")
                for row in _answered(generator, batch, answerer.fingerprint):
                    known[row["key"]] = row
                    out.write(_line(row))
                out.flush()
                os.fsync(out.fileno())
                done += len(batch)
        tell(done, len(wanted), "replies")
    rows = {request.key: known[request.key] for request in wanted}
    body = b"".join(_line(row) for row in rows.values())
    if not path.exists() or path.read_bytes() != body:
        with publish_file(path, overwrite=True) as temporary:
            temporary.write_bytes(body)
    journal.unlink(missing_ok=True)
    return rows


def require_memory(checkpoint: Checkpoint, device: str, dtype: str) -> None:
    """`MissingPrerequisite` unless the whole model fits into memory: generation needs all layers at once."""
    import torch

    item = getattr(torch, dtype).itemsize
    weights = sum(prod(info.shape) for info in checkpoint.index.values()) * item
    need = int(weights * 1.1)  # caches and activations of a few short replies
    kind = torch.device(device).type
    free = torch.cuda.mem_get_info(torch.device(device))[0] if kind == "cuda" else available_memory()
    if free < need:
        raise MissingPrerequisite(
            "the model does not fit into memory, so it cannot generate the replies of this set",
            expected=f"{need / 1e9:.1f} GB free on {kind} for {dtype} weights",
            actual=f"{free / 1e9:.1f} GB",
            remedy="generate the replies elsewhere and name their file in the set (`replies: FILE`), "
            "see docs/howto/calibration-set.md",
        )


def _request(text: SourceText, answerer: Answerer, tokenizer: Tokenizer) -> Request:
    messages = tuple(m for m in text.body if not isinstance(m, str))
    ids = prompt_ids(messages, text.thinking, tokenizer)
    new_tokens = text.asks or 0
    about = {"model": answerer.fingerprint, "dtype": answerer.dtype}
    key = sha256_json({**about, "prompt": ids, "new_tokens": new_tokens})
    return Request(key, messages, tuple(ids), new_tokens)


def _batches(requests: Sequence[Request]) -> list[list[Request]]:
    """Batches of at most `BATCH` requests with the same limit of tokens, in order."""
    groups: dict[int, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.new_tokens, []).append(request)
    return [group[i : i + BATCH] for group in groups.values() for i in range(0, len(group), BATCH)]


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace") + b"\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by key. An incomplete last line of a killed run is ignored; `BadInput` for any other damage."""
    if not path.exists():
        return {}
    rows = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):  # empty, or incomplete: a complete line ends with \n
            break
        try:
            row = json.loads(line)
            rows[str(row["key"])] = {
                **row,
                "reply": str(row["reply"]),
                "finish_reason": str(row["finish_reason"]),
                "reply_tokens": [int(t) for t in row["reply_tokens"]],
            }
        except (ValueError, KeyError, TypeError) as exc:
            raise BadInput(
                f"line {number} of {path} is damaged",
                expected="a row written by trimoe",
                actual=str(exc)[:100],
                remedy="remove the file; its replies are generated again",
            ) from exc
    return rows


def _generator(checkpoint: Checkpoint, tokenizer: Any, device: str, dtype: str) -> Generator:
    stops = end_of_turn(tokenizer)[-1:]
    return Generator(checkpoint.path, device, dtype, tokenizer=tokenizer, stops=stops)


def _require_room(generator: Answering, longest: int) -> None:
    """`CalibrationError` if a prompt and its longest reply do not fit the model's context."""
    if generator.context is not None and longest > generator.context:
        raise CalibrationError(
            "a prompt and its reply do not fit the model's context",
            expected=f"at most {generator.context} tokens",
            actual=f"{longest} tokens",
            remedy="lower new_tokens",
        )


def _answered(generator: Answering, batch: Sequence[Request], fingerprint: str) -> list[dict[str, Any]]:
    """Rows of the file of replies, in the order of the requests."""
    replies = generator.reply([request.ids for request in batch], batch[0].new_tokens)
    return [_row(request, reply, fingerprint) for request, reply in zip(batch, replies, strict=True)]


def _row(request: Request, reply: Reply, fingerprint: str) -> dict[str, Any]:
    alone = len(request.messages) == 1 and request.messages[0]["role"] == "user"
    question = {"prompt": request.messages[0]["content"]} if alone else {"messages": list(request.messages)}
    return {
        "key": request.key,
        **question,
        "reply": reply.text,
        "reply_tokens": list(reply.tokens),
        "model": fingerprint,
        "finish_reason": reply.finish_reason,
    }
