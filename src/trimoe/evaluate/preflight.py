"""Preflight: checks, before the first request of a bench, that the server fits it.

Invariants: values are read from the live server, not from its launch options. A mismatch is `Refused` with the remedy.
A value that cannot be read is "unverified" and shown with the score; it never counts as right. The thresholds are those
of section 2 of the protocol.
Not guaranteed: that a server tells the truth about itself.
"""

import http.client
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.bench.spec import BenchSpec
from trimoe.errors import MissingPrerequisite, Refused
from trimoe.evaluate import markers
from trimoe.evaluate.answer import Answer, Fault, read_answer
from trimoe.evaluate.live_server import TROUBLE, LiveServer
from trimoe.evaluate.local_checks import Finding, check_disk, check_gated_data, check_tokenizer
from trimoe.evaluate.special_tokens import check_special_tokens
from trimoe.model.gguf.file import is_gguf, open_gguf
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.process import fetch, said
from trimoe.serve.requirements import required_context
from trimoe.serve.target import find_target

CANARY = "Which number comes after 7? Answer with the number."
CANARY_TOKENS = 64
_MARKER = re.compile(r"<[^<>\s'\"]{1,40}>")


@dataclass(frozen=True)
class PreflightReport:
    """The findings of all checks. `endpoint` has the context and slots that were read from the server."""

    endpoint: Endpoint
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[str]:
        """What could not be verified."""
        return [f"unverified {found.name}: {found.detail}" for found in self.findings if found.status == "unverified"]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for the run log."""
        return {found.name: {"status": found.status, "detail": found.detail} for found in self.findings}


def check(
    endpoint: Endpoint,
    spec: BenchSpec | None,
    *,
    max_new_tokens: int | None = None,
    rows: int = 0,
    model: Path | None = None,
    tokenizer: Path | None = None,
    data: Path | None = None,
    log_path: Path | None = None,
    longest: Sequence[Mapping[str, str]] = (),
) -> PreflightReport:
    """Run every cheap check whose failure would make a score worthless.

    `spec` is None for a bundled bench; then `max_new_tokens` is its cap. `model` is the path that should be served, if
    known; `tokenizer` the directory of the tokenizer for counting; `data` the folder of local data sets; `rows` the
    number of replies that the log at `log_path` will get; `longest` the chat with the longest prompt. Raises `Refused`
    for a failed check, `MissingPrerequisite` if the server does not reply.
    """
    if spec is not None:
        max_new_tokens = spec.generation.max_new_tokens
    live = LiveServer(endpoint)
    found = [
        check_tokenizer(tokenizer),
        check_gated_data(spec, data),
        check_disk(log_path, rows, max_new_tokens or 0),
        _model(live, model),
    ]
    context, slots, finding = _context(live, spec, max_new_tokens or 0)
    finding = _clipped(live, finding, context, max_new_tokens or 0, longest)
    found += [finding, _markers(live), _thinking(endpoint, spec), _budget(live, spec)]
    found += [check_special_tokens(live), _canary(live, spec)]
    known = replace(endpoint, context=context or endpoint.context, slots=slots or endpoint.slots)
    return PreflightReport(known, tuple(found))


def _model(live: LiveServer, claimed: Path | None) -> Finding:
    """The served model is the one that the run names: by hash if trimoe started the server, else by name and file."""
    endpoint = live.endpoint
    listed = live.page(f"{endpoint.url}/models")
    names = [row.get("id") for row in (listed or {}).get("data") or [] if isinstance(row, dict)]
    if names and endpoint.model not in names and endpoint.engine != "transformers":  # which lists a cache, not a model
        raise Refused(
            "the server does not have this model",
            expected=endpoint.model,
            actual=", ".join(map(str, names[:5])),
            remedy="start the server with the model, or give --model-id",
        )
    path = endpoint.operational.get("path") or claimed
    served = live.model_path()
    if claimed is not None and served and Path(served).name != claimed.name:
        raise Refused(
            "the server has loaded another file",
            expected=str(claimed),
            actual=served,
            remedy=f"restart the server: trimoe serve {claimed}",
        )
    if endpoint.model_hash is None:
        return Finding("model", "unverified", f"the server names {endpoint.model}; the file's hash is unknown")
    if path is not None:
        now = find_target(path).fingerprint()
        if now != endpoint.model_hash:
            raise Refused(
                "the model's files have changed since the server was started",
                expected=f"hash {endpoint.model_hash[:16]}",
                actual=f"hash {now[:16]} of {path}",
                remedy="restart the server",
            )
    return Finding("model", "ok", f"hash {endpoint.model_hash[:16]}" + (f", file {served}" if served else ""))


def _context(live: LiveServer, spec: BenchSpec | None, max_new_tokens: int) -> tuple[int | None, int | None, Finding]:
    """The live server's tokens per slot are at least max(max_gen, think + 4096)."""
    think = spec.generation.think_budget if spec and spec.generation.thinking == "on" else 0
    needed = required_context(max_new_tokens, think)
    context, slots, source = live.context()
    if context is None:
        detail = f"{needed} tokens per slot are needed; the server does not state its context"
        return None, None, Finding("context", "unverified", detail)
    if context < needed:
        raise Refused(
            "a slot of the server is too small for this bench",
            expected=f"{needed} tokens per slot: max({max_new_tokens} of reply, {think} of thinking + 4096)",
            actual=f"{context} tokens per slot" + (f", {slots} slots" if slots else "") + f" ({source})",
            remedy=f"raise the context (trimoe serve ... --context {needed}) or lower --parallel, not the budget",
        )
    return context, slots, Finding("context", "ok", f"{context} tokens per slot, {needed} needed ({source})")


def _clipped(
    live: LiveServer, found: Finding, context: int | None, cap: int, longest: Sequence[Mapping[str, str]]
) -> Finding:
    """vLLM shortens a reply without a word where prompt and cap exceed the context; it refuses only a longer prompt."""
    if live.endpoint.engine != "vllm" or context is None or not longest:
        return found
    body = {"model": live.endpoint.model, "messages": list(longest), "add_generation_prompt": True}
    try:
        count = len(fetch(f"{live.root}/tokenize", body, headers=live.headers)["tokens"])
    except TROUBLE:
        return found
    if count + cap <= context:
        return found
    detail = (
        f"{found.detail}; the longest prompt has {count} tokens, so vLLM cuts its reply at {max(0, context - count)}, "
        f"not at {cap} (--max-model-len {count + cap} avoids it)"
    )
    return Finding("context", "unverified", detail)


def _markers(live: LiveServer) -> Finding:
    """Each marker of the chat template is one token. A file converted from a tokenizer that does not declare them as
    special tokens loads and answers, but splits them: the bundled model's arithmetic fell from 98 % to 0 that way."""
    path, name = live.endpoint.operational.get("path"), "template markers"
    template = (
        (live.page(f"{live.root}/props") or {}).get("chat_template") if live.endpoint.engine == "llamacpp" else None
    )
    if not template or path is None or not is_gguf(Path(path)):
        return Finding(name, "does not apply", "checked only for a local .gguf file on llama.cpp")
    vocabulary = set(open_gguf(Path(path)).get("tokenizer.ggml.tokens") or ())
    markers = sorted(set(_MARKER.findall(template)) & vocabulary)
    ask = {"add_special": False, "parse_special": True}
    try:
        pieces = {
            marker: len(fetch(f"{live.root}/tokenize", {**ask, "content": marker}, headers=live.headers)["tokens"])
            for marker in markers
        }
    except TROUBLE as exc:
        return Finding(name, "unverified", said(exc) if isinstance(exc, OSError) else "/tokenize did not answer")
    if split := [f"{marker} is {count} tokens" for marker, count in pieces.items() if count != 1]:
        raise Refused(
            "markers of the chat template are split into several tokens",
            expected="one token each",
            actual=", ".join(split[:5]),
            remedy="list them as extra_special_tokens in the checkpoint's tokenizer_config.json and convert it again",
        )
    return Finding(name, "ok", f"{len(markers)} are one token each: {' '.join(markers[:6])}")


def _thinking(endpoint: Endpoint, spec: BenchSpec | None) -> Finding:
    served = endpoint.settings.get("thinking")
    if spec is None:
        return Finding("thinking", "does not apply", "the bench does not specify it")
    if served is None:
        return Finding(
            "thinking", "unverified", f"the bench needs it {spec.generation.thinking}; the server does not state it"
        )
    if served != spec.generation.thinking:
        raise Refused(
            "thinking on the server does not match the bench",
            expected=f"thinking {spec.generation.thinking}",
            actual=f"thinking {served}",
            remedy=f"start the server for this bench: trimoe serve MODEL --bench {spec.name}",
        )
    return Finding("thinking", "ok", str(served))


def _budget(live: LiveServer, spec: BenchSpec | None) -> Finding:
    """The budget that the server enforces is the bench's. The server's flag overrides a request."""
    if spec is None or spec.generation.thinking == "off" or spec.serving.llamacpp.reasoning != "budget":
        return Finding("thinking budget", "does not apply", "the bench has none")
    declared, settings, flags = spec.generation.think_budget, live.endpoint.settings, live.flags()
    if "--reasoning-budget" in flags:
        served, source = int(flags[flags.index("--reasoning-budget") + 1]), "command line of the running server"
    elif "think_budget" in settings:
        served, source = settings["think_budget"], "launch option"
    else:
        return Finding(
            "thinking budget", "unverified", f"{declared} tokens declared; the server does not state its budget"
        )
    if served != declared:
        raise Refused(
            "the server's thinking budget is not the bench's",
            expected=f"{declared} tokens",
            actual=f"{'no budget' if served in (None, -1) else f'{served} tokens'} ({source})",
            remedy=f"start the server for this bench (trimoe serve MODEL --bench {spec.name}); "
            "transformers and ollama have no budget: use llamacpp or vllm",
        )
    return Finding("thinking budget", "ok", f"{served} tokens ({source})")


def _canary(live: LiveServer, spec: BenchSpec | None) -> Finding:
    """One real request: the reply has the right form and model, contains no marker, and its text can be read."""
    endpoint = live.endpoint
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": CANARY}],
        "max_tokens": CANARY_TOKENS,
        "temperature": 0,
        **endpoint.body,
    }
    try:
        raw = json.dumps(fetch(f"{endpoint.url}/chat/completions", body, timeout=600, headers=live.headers)).encode()
        answer = read_answer(raw, endpoint.names, CANARY_TOKENS)
    except Fault as exc:
        raise Refused(
            "the reply to the test question cannot be used",
            expected="a chat completion",
            actual=str(exc),
            remedy="if it is the same model, add --answers-as with the reply's name for it; if not, correct --model-id"
            if exc.kind == "wrong model"
            else "check which server this is, and read its log",
        ) from exc
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise MissingPrerequisite(
            "the server does not reply", expected="a reply to one question", actual=said(exc), remedy="read its log"
        ) from exc
    _readable(answer, spec)
    return Finding("canary", "ok" if answer.content else "unverified", _shown(answer))


def _readable(answer: Answer, spec: BenchSpec | None) -> None:
    remedy = (
        "start the server with the reasoning parser of the family, as trimoe serve does, and the model's chat template"
    )
    if marks := markers.found(answer.content, CANARY):
        raise Refused(
            "the reply contains markers of the chat template", expected="none", actual=", ".join(marks), remedy=remedy
        )
    thinks = answer.reasoning and not answer.fallback
    if spec is not None and spec.generation.thinking == "off" and thinks:
        raise Refused(
            "the server thinks although the bench turns thinking off",
            expected="no reasoning",
            actual=answer.reasoning[:100],
            remedy=f"trimoe serve MODEL --bench {spec.name}",
        )
    if not answer.content and not answer.reasoning and answer.reply_tokens > 1:
        raise Refused(
            "a reply was generated, but its text is missing",
            expected="text in content, reasoning_content or reasoning",
            actual=f"{answer.reply_tokens} tokens, every field empty",
            remedy=remedy,
        )


def _shown(answer: Answer) -> str:
    text = answer.content or answer.reasoning
    return json.dumps(text[:60], ensure_ascii=False) if text else "the reply is empty"
