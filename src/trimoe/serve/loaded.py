"""What an engine loaded is compared with the checkpoint: its loading report, then replies against the recorded ones.

Invariants: a server whose log says that weights are missing is refused with their names, and so is one whose greedy
replies differ from those in the checkpoint's manifest (quantize/replies.py). What could not be compared is said.
Not guaranteed: a fault that leaves the report clean in a checkpoint without recorded replies.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, Refused
from trimoe.io.canonical import sha256_json
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.quantize.replies import LEAST, PROMPTS, agreement
from trimoe.serve import process
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.target import Target

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ROW = re.compile(r"^(\S.{0,400}?)\s*\|\s*(MISSING|MISMATCH|UNEXPECTED|CONVERSION)\b")
_LAYERS = re.compile(r"(?:^|\.)layers\.(?:\{([^}]*)\}|(\d+))\.")
_OTHER = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal)\w*\.")
_NEW = re.compile(r"Some weights of .{0,200}? were (?:not initialized|newly initialized)[^\n]*")  # before version 5
_SHOWN = 5
_LOG = 64 << 20  # bytes of a log that are read


def require_loaded(log: Path, layers: int | None) -> None:
    """`BadInput` if the log of a transformers server reports weights that are missing, of other sizes, or not used.

    `layers` is the number of decoder layers; draft blocks after the last one, vision and audio towers may be unused.
    """
    with log.open("rb") as file:
        text = _COLOUR.sub("", file.read(_LOG).decode(errors="replace"))
    found = sorted(_faults(text, layers), key=lambda fault: fault.endswith("unexpected"))  # missing ones first
    if found:
        raise BadInput(
            "the server runs, but has not loaded the checkpoint",
            expected="every weight of the checkpoint in the model, and no other",
            actual="; ".join(found[:_SHOWN]) + (f"; {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""),
            remedy="missing weights are random: use an engine that reads this layout, or an unquantized checkpoint; "
            f"the whole report is in {log}",
        )


def _faults(text: str, layers: int | None) -> Iterator[str]:
    for line in text.splitlines():
        if (row := _ROW.match(line)) and not (row[2] == "UNEXPECTED" and _spare(row[1], layers)):
            yield f"{row[1]} {row[2].lower()}"
        elif old := _NEW.search(line):
            yield old.group()[:200]


def _spare(name: str, layers: int | None) -> bool:
    """Whether text generation does not use a weight: a tower, a draft block, or outside the decoder layers."""
    found = _LAYERS.search(name)
    if found is None or _OTHER.search(name):
        return True
    numbers = [int(n) for n in re.findall(r"\d+", found[1] or found[2])]
    return layers is not None and bool(numbers) and min(numbers) >= layers


def compare_replies(endpoint: Endpoint, target: Target) -> str:
    """Compare a server's greedy replies with those in the manifest; a sentence on the outcome. Raises `Refused`."""
    record = _record(target)
    if "texts" not in record:
        return f"replies not compared: {record.get('not recorded', 'the checkpoint has no recorded replies')}"
    if record.get("prompts") != sha256_json(list(PROMPTS)):
        return "replies not compared: they were recorded with the prompts of another version"
    known = [str(text) for text in record["texts"]]
    given = [_ask(endpoint, target, prompt, int(record["tokens"])) for prompt in PROMPTS]
    share, same = agreement(known, given), sum(a.strip() == b.strip() for a, b in zip(known, given, strict=True))
    outcome = f"{same} of {len(known)} replies are the recorded ones, {100 * share:.0f} % of their text"
    if share < LEAST:
        worst = min(range(len(known)), key=lambda i: agreement([known[i]], [given[i]]))
        raise Refused(
            f"{endpoint.engine} does not compute what the checkpoint holds",
            expected=f"at least {100 * LEAST:.0f} % of the text of replies recorded when the checkpoint was made",
            actual=f"{outcome}; to {PROMPTS[worst][:60]!r} it answers {given[worst][:60]!r}, not {known[worst][:60]!r}",
            remedy="the engine ignores or misreads weights of this layout: use another engine or layout "
            "(docs/howto/quantize-nvfp4.md), or `trimoe eval` in this process",
        )
    return outcome


def _record(target: Target) -> dict[str, Any]:
    file = target.path / MANIFEST if target.path is not None and target.kind == "checkpoint" else None
    if file is None or not file.is_file():
        return {}
    try:
        record = read_json(file, "manifest")["facts"]["replies"]
    except (BadInput, KeyError, TypeError):
        return {}
    return record if isinstance(record, dict) else {}


def _ask(endpoint: Endpoint, target: Target, prompt: str, tokens: int) -> str:
    """One greedy reply, thinking off; reasoning that a parser took out is put back."""
    body: dict[str, Any] = {**endpoint.body, "model": endpoint.model, "max_tokens": tokens, "temperature": 0}
    body.pop("thinking_token_budget", None)
    if target.serving and target.serving.thinking:
        body["chat_template_kwargs"] = {target.serving.thinking: False}
    body["messages"] = [{"role": "user", "content": prompt}]
    try:
        reply = process.fetch(f"{endpoint.url}/chat/completions", body, timeout=process.WARM_UP)
        message = reply["choices"][0]["message"]
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        return f"{thought}{message.get('content') or ''}"
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        raise BadInput(
            f"{endpoint.engine} answers, but not this question: {prompt[:60]!r}",
            expected="a reply",
            actual=process.said(exc),
            remedy="see the server's log",
        ) from exc
