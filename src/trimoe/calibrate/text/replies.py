"""Tier A: the model's own greedy replies to prompts, made once, kept in a file, replayed as documents.

The file of replies is JSON lines beside the statistics: per prompt its text, the reply, the reply's token ids and a key
over model, type and prompt tokens. Replies that are there under the right key are never generated again.
Invariants: batches are cut from the whole list, and a batch with a missing reply is generated as a whole, so a resumed
run ends with the same bytes as an undisturbed one; decoding is greedy, without a repetition penalty or other bias from
the checkpoint's generation settings; logits that are not finite stop the run.
Not guaranteed: the same replies on another device or another version of torch, where a tie may fall otherwise (the
file, not the generation, is what the statistics are a function of). The whole model must fit into memory.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from trimoe.calibrate.plan import available_memory
from trimoe.calibrate.text.records import Message
from trimoe.calibrate.text.rendering import Tokenizer, end_of_turn, prompt_ids
from trimoe.calibrate.text.sources import RawReply, SourceText
from trimoe.errors import BadInput, CalibrationError, CheckpointError, MissingPrerequisite
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_file, sha256_json
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint

BATCH = 8
"""Prompts per batch; part of what the replies are a function of (float sums depend on the padding)."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer: [P] token ids of the opened turn, and at most `new_tokens` of reply."""

    key: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    new_tokens: int


def path_beside(out: Path) -> Path:
    """Where the replies made for the statistics file `out` lie."""
    return out.with_name(out.name + ".replies.jsonl")


def answered(
    texts: dict[str, list[SourceText]],
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    path: Path | None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
) -> tuple[dict[str, list[SourceText]], dict[str, Any]]:
    """The texts with every missing reply filled in from the file `path`, generated there first where it is missing.

    The second value describes the file for the statistics; empty if no reply was missing. Raises `CalibrationError`
    (no chat template, no `path`), `CheckpointError`, `MissingPrerequisite` (the model does not fit into memory).
    """
    open_texts = [text for items in texts.values() for text in items if text.asks is not None and text.reply is None]
    if not open_texts:
        return texts, {}
    if path is None:
        raise CalibrationError(
            f"{open_texts[0].where} has no reply yet",
            expected="a file to keep replies in",
            remedy="calibrate to a file, or give `replies` in the set file",
        )
    requests = {id(text): _request(text, checkpoint, tokenizer, dtype) for text in open_texts}
    rows = make_replies(list(requests.values()), checkpoint, tokenizer, path, device, dtype, progress)

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
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    path: Path,
    device: str,
    dtype: str,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """key -> row of the file of replies at `path`, which holds exactly these requests afterwards."""
    wanted = list({request.key: request for request in requests}.values())
    journal = path.with_name(f".{path.name}.journal")
    known = {**_read(path), **_read(journal)}
    batches = _batches(wanted)
    missing = [batch for batch in batches if any(request.key not in known for request in batch)]
    if missing:
        require_memory(checkpoint, device, dtype)
        model = _Model(checkpoint, tokenizer, device, dtype)
        model.require_room(wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        done = sum(len(b) for b in batches) - sum(len(b) for b in missing)
        with journal.open("ab") as out:
            for batch in missing:
                if progress:
                    progress(done, len(wanted), "replies")
                for row in model.reply(batch):
                    known[row["key"]] = row
                    out.write(_line(row))
                out.flush()
                os.fsync(out.fileno())
                done += len(batch)
        del model
    rows = {request.key: known[request.key] for request in wanted}
    body = b"".join(_line(row) for row in rows.values())
    if not path.exists() or path.read_bytes() != body:
        with publish_file(path, overwrite=True) as temporary:
            temporary.write_bytes(body)
    journal.unlink(missing_ok=True)
    return rows


def require_memory(checkpoint: Checkpoint, device: str, dtype: str) -> None:
    """`MissingPrerequisite` unless the whole model fits: generating, unlike measuring, needs all layers at once."""
    import torch

    item = getattr(torch, dtype).itemsize
    weights = sum(prod(info.shape) for info in checkpoint.index.values()) * item
    need = int(weights * 1.1)  # caches and activations of a few short replies
    kind = torch.device(device).type
    free = torch.cuda.mem_get_info(torch.device(device))[0] if kind == "cuda" else available_memory()
    if free < need:
        raise MissingPrerequisite(
            "the model does not fit into memory, so it cannot answer the prompts of this set itself",
            expected=f"{need / 1e9:.1f} GB free on {kind} for {dtype} weights",
            actual=f"{free / 1e9:.1f} GB",
            remedy="make the replies elsewhere and name the file in the set (`replies: FILE`), "
            "see docs/howto/calibration-set.md",
        )


def _request(text: SourceText, checkpoint: Checkpoint, tokenizer: Tokenizer, dtype: str) -> Request:
    messages = tuple(m for m in text.body if not isinstance(m, str))
    ids = prompt_ids(messages, text.thinking, tokenizer)
    new_tokens = text.asks or 0
    key = sha256_json({"model": checkpoint.fingerprint, "dtype": dtype, "prompt": ids, "new_tokens": new_tokens})
    return Request(key, messages, tuple(ids), new_tokens)


def _batches(requests: Sequence[Request]) -> list[list[Request]]:
    """In order, `BATCH` requests of the same length of reply each."""
    groups: dict[int, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.new_tokens, []).append(request)
    return [group[i : i + BATCH] for group in groups.values() for i in range(0, len(group), BATCH)]


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace") + b"\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by key; a torn last line of a killed run is passed over. Raises `BadInput` for any other damage."""
    if not path.exists():
        return {}
    rows = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):  # nothing, or torn: a finished line ends with \n
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
                expected="a row that trimoe wrote",
                actual=str(exc)[:100],
                remedy="remove the file; its replies are generated again",
            ) from exc
    return rows


class _Model:
    """A whole model that answers batches greedily through transformers' own `generate`."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Any, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
        )
        self.model, info = loaded
        for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
            if info.get(kind):
                raise CheckpointError(
                    f"{checkpoint.path} does not load exactly: {kind}",
                    expected="none",
                    actual=", ".join(sorted(map(str, info[kind]))[:5]),
                    remedy="config and weights do not belong together",
                )
        self.model = self.model.to(device).eval()
        self.device, self.tokenizer, self.fingerprint = device, tokenizer, checkpoint.fingerprint
        configured = self.model.generation_config.eos_token_id
        stops = set(configured if isinstance(configured, list) else [configured])
        stops |= {tokenizer.eos_token_id, *end_of_turn(tokenizer)[-1:]}
        self.stops = sorted(s for s in stops if s is not None)
        if not self.stops:
            raise CheckpointError(
                f"{checkpoint.path} does not say which token ends a reply",
                expected="eos_token_id",
                remedy="add generation_config.json of the original model",
            )
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]
        # A fresh one: the checkpoint's may hold penalties or a sampler, and a reply would not be greedy.
        self.model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=self.stops, pad_token_id=self.pad
        )

    def require_room(self, requests: Sequence[Request]) -> None:
        """`CalibrationError` when a prompt and its longest reply do not fit the model's context."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(len(request.ids) + request.new_tokens for request in requests)
        if context is not None and longest > context:
            raise CalibrationError(
                "a prompt and its reply do not fit the model's context",
                actual=f"{longest} tokens",
                expected=f"at most {context}",
                remedy="lower new_tokens",
            )

    def reply(self, batch: Sequence[Request]) -> list[dict[str, Any]]:
        """Rows of the file of replies, in the order of the requests."""
        import torch

        width = max(len(request.ids) for request in batch)
        ids = [[self.pad] * (width - len(r.ids)) + list(r.ids) for r in batch]  # [B, width], padded on the left
        mask = [[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in batch]
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=batch[0].new_tokens,
                logits_processor=[_require_finite],
            )
        return [self._row(request, row[width:].tolist()) for request, row in zip(batch, out, strict=True)]

    def _row(self, request: Request, tokens: list[int]) -> dict[str, Any]:
        end = next((i for i, token in enumerate(tokens) if token in self.stops), None)
        kept = tokens if end is None else tokens[: end + 1]
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        alone = len(request.messages) == 1 and request.messages[0]["role"] == "user"
        question = {"prompt": request.messages[0]["content"]} if alone else {"messages": list(request.messages)}
        return {
            "key": request.key,
            **question,
            "reply": str(text),
            "reply_tokens": kept,
            "model": self.fingerprint,
            "finish_reason": "length" if end is None else "stop",
        }


def _require_finite(input_ids: Any, scores: Any) -> Any:
    """A logits processor that changes nothing and refuses NaN and infinity."""
    import torch

    if not bool(torch.isfinite(scores).all()):
        raise CheckpointError(
            "the model's logits are not finite",
            expected="finite numbers",
            remedy="the weights hold NaN or overflow: check the checkpoint",
        )
    return scores
