"""Asks a server, before the first question of a bench, whether its answers could be believed at all.

Invariants: what is compared is read from the live server, not from what it was told to do; a mismatch is `Refused` with
the fix; what cannot be read is "unverified" and shown, never taken for right. The thresholds are those of protocol
section 2. Not guaranteed: that a server tells the truth about itself.
"""

import http.client
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from trimoe.bench.spec import BenchSpec
from trimoe.errors import MissingPrerequisite, Refused
from trimoe.evaluate.answer import Answer, Fault, leaks, read_answer
from trimoe.model.gguf.file import is_gguf, open_gguf
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.probe import headers
from trimoe.serve.process import fetch, listener, said
from trimoe.serve.requirements import required_context
from trimoe.serve.target import find_target

Status = Literal["ok", "unverified", "does not apply"]
CANARY = "Which number comes after 7? Answer with the number."
CANARY_TOKENS = 64
LEAST_FREE = 512 << 20  # bytes on the disk of the run log
REPLY_BYTES = 8  # bytes a stored token may take, raw reply included
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TROUBLE = (OSError, ValueError, KeyError, TypeError, http.client.HTTPException)
_MARKER = re.compile(r"<[^<>\s'\"]{1,40}>")
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Finding:
    """One question and what came out. A refusal is an exception, so there is no such status."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class PreflightReport:
    """All that was asked. `endpoint` carries what was read from the server (context, slots)."""

    endpoint: Endpoint
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[str]:
        """What could not be verified, for people and for the log."""
        return [f"unverified {found.name}: {found.detail}" for found in self.findings if found.status == "unverified"]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; a run keeps it."""
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
) -> PreflightReport:
    """Everything cheap that can make a score worthless. Raises `Refused` with the fix, `MissingPrerequisite` for keys.

    `spec` is None for a bundled bench, then `max_new_tokens` holds its cap. `model` is what is claimed to be served, if
    anything is; `tokenizer` the directory tokens are counted with; `data` the folder of local data sets; `rows` how
    many replies the log at `log_path` will get.
    """
    if spec is not None:
        max_new_tokens = spec.generation.max_new_tokens
    live = _Live(endpoint)
    found = [
        _tokenizer(tokenizer),
        _gated(spec, data),
        _disk(log_path, rows, max_new_tokens or 0),
        _model(live, model),
    ]
    context, slots, finding = _context(live, spec, max_new_tokens or 0)
    found += [finding, _markers(live), _thinking(endpoint, spec), _budget(live, spec), _canary(live, spec)]
    known = replace(endpoint, context=context or endpoint.context, slots=slots or endpoint.slots)
    return PreflightReport(known, tuple(found))


class _Live:
    """Pages of the server, each read once; None where there is no such page."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self._pages = endpoint, dict[str, Any]()
        self.root = endpoint.url.removesuffix("/v1")
        self.headers = headers(endpoint.api_key_env)

    def page(self, url: str) -> Any:
        if url not in self._pages:
            try:
                self._pages[url] = fetch(url, timeout=30, headers=self.headers)
            except _TROUBLE:
                self._pages[url] = None
        return self._pages[url]

    def card(self) -> Mapping[str, Any]:
        """The entry of /v1/models for our model."""
        rows = (self.page(f"{self.endpoint.url}/models") or {}).get("data") or []
        return next((row for row in rows if isinstance(row, dict) and row.get("id") == self.endpoint.model), {})

    def flags(self) -> list[str]:
        """The command line of the process that listens there; empty when it is elsewhere or not ours to read."""
        parts = urlsplit(self.endpoint.url)
        if parts.hostname not in _LOCAL or parts.port is None or (pid := listener(parts.port)) is None:
            return []
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []


def _tokenizer(tokenizer: Path | None) -> Finding:
    if tokenizer is None:
        return Finding("tokenizer", "does not apply", "tokens are counted by the server")
    remedy = "give the directory of the original model, which holds tokenizer.json"
    if tokenizer.is_file() and (is_gguf(tokenizer) or tokenizer.suffix == ".gguf"):
        raise Refused(
            "a GGUF file was given as the tokenizer",
            expected="a directory with tokenizer files",
            actual=str(tokenizer),
            remedy=remedy,
        )
    if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise Refused(
            f"{tokenizer} holds no tokenizer",
            expected=" or ".join(TOKENIZER_FILES),
            actual="none of them",
            remedy=remedy,
        )
    return Finding("tokenizer", "ok", str(tokenizer))


def _gated(spec: BenchSpec | None, data: Path | None) -> Finding:
    """A gated data set without a token gave zeros in the reference; here the run does not begin."""
    for dataset in spec.dataset if spec else ():
        local = data is not None and (data / dataset.local).exists()
        if dataset.gated and not local and not _hub_token():
            raise Refused(
                f"{dataset.hub} is gated",
                expected="an access token of the hub, or a local copy",
                actual=f"HF_TOKEN is not set, and there is no {dataset.local} below {data or '--data'}",
                remedy=f"accept its terms (huggingface.co/datasets/{dataset.hub}) and set HF_TOKEN, or give --data DIR",
            )
    gated = spec is not None and any(dataset.gated for dataset in spec.dataset)
    return Finding(
        "gated data", "ok" if gated else "does not apply", "token or local copy" if gated else "none is gated"
    )


def _hub_token() -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return bool(os.environ.get("HF_TOKEN")) or file.is_file()


def _disk(log_path: Path | None, rows: int, max_new_tokens: int) -> Finding:
    if log_path is None:
        return Finding("disk", "does not apply", "no run log")
    folder = next(parent for parent in log_path.absolute().parents if parent.is_dir())
    free, needed = shutil.disk_usage(folder).free, LEAST_FREE + rows * max_new_tokens * REPLY_BYTES
    if free < needed:
        raise Refused(
            "the disk is too full for the run log",
            expected=f"{needed >> 20} MiB free in {folder}",
            actual=f"{free >> 20} MiB",
            remedy="free some space, or give --log a path on another disk",
        )
    return Finding("disk", "ok", f"{free >> 20} MiB free, up to {needed >> 20} MiB needed")


def _model(live: _Live, claimed: Path | None) -> Finding:
    """What is served is what the run will be booked under: by hash where we started it, else by name and file."""
    endpoint = live.endpoint
    listed = live.page(f"{endpoint.url}/models")
    names = [row.get("id") for row in (listed or {}).get("data") or [] if isinstance(row, dict)]
    if names and endpoint.model not in names and endpoint.engine != "transformers":  # which lists a cache, not a model
        raise Refused(
            "the server does not serve this model",
            expected=endpoint.model,
            actual=", ".join(map(str, names[:5])),
            remedy="start it again, or pass --model-id",
        )
    path = endpoint.operational.get("path") or claimed
    served = _served_path(live)
    if claimed is not None and served and Path(served).name != claimed.name:
        raise Refused(
            "the server serves another file",
            expected=str(claimed),
            actual=served,
            remedy=f"start it again: trimoe serve {claimed}",
        )
    if endpoint.model_hash is None:
        return Finding("model", "unverified", f"the server names {endpoint.model}; nobody knows the file's hash")
    if path is not None:
        now = find_target(path).fingerprint()
        if now != endpoint.model_hash:
            raise Refused(
                "the model's files are not those the server was started with",
                expected=f"hash {endpoint.model_hash[:16]}",
                actual=f"hash {now[:16]} of {path}",
                remedy="start the server again",
            )
    return Finding("model", "ok", f"hash {endpoint.model_hash[:16]}" + (f", file {served}" if served else ""))


def _served_path(live: _Live) -> str:
    props = live.page(f"{live.root}/props") if live.endpoint.engine == "llamacpp" else None
    return str((props or {}).get("model_path") or live.card().get("root") or "")


def _context(live: _Live, spec: BenchSpec | None, max_new_tokens: int) -> tuple[int | None, int | None, Finding]:
    """Tokens per slot on the live server against max(max_gen, think + 4096)."""
    think = spec.generation.think_budget if spec and spec.generation.thinking == "on" else 0
    needed = required_context(max_new_tokens, think)
    context, slots, source = _READERS.get(live.endpoint.engine, _read_card)(live)
    if context is None:
        return (
            None,
            None,
            Finding("context", "unverified", f"{needed} tokens per slot are needed; the server tells none"),
        )
    if context < needed:
        raise Refused(
            "a slot of the server is too small for this bench",
            expected=f"{needed} tokens per slot: max({max_new_tokens} of reply, {think} of thinking + 4096)",
            actual=f"{context} tokens per slot" + (f", {slots} slots" if slots else "") + f" ({source})",
            remedy=f"raise the context (trimoe serve ... --context {needed}) or lower --parallel; never cut the budget",
        )
    return context, slots, Finding("context", "ok", f"{context} tokens per slot, {needed} needed ({source})")


Read = tuple[int | None, int | None, str]


def _read_llamacpp(live: _Live) -> Read:
    slots = live.page(f"{live.root}/slots")
    if isinstance(slots, list) and slots and all(_whole(slot.get("n_ctx")) for slot in slots):
        return min(slot["n_ctx"] for slot in slots), len(slots), "/slots"
    props = live.page(f"{live.root}/props") or {}
    return (
        _whole((props.get("default_generation_settings") or {}).get("n_ctx")),
        _whole(props.get("total_slots")),
        "/props",
    )


def _read_ollama(live: _Live) -> Read:
    rows = (live.page(f"{live.root}/api/ps") or {}).get("models") or []
    row: Mapping[str, Any] = next((row for row in rows if row.get("name") == live.endpoint.model), {})
    return _whole(row.get("context_length")), None, "/api/ps"


def _read_transformers(live: _Live) -> Read:
    return live.endpoint.context, live.endpoint.slots, "config.json of the served directory"


def _read_card(live: _Live) -> Read:
    return _whole(live.card().get("max_model_len")), None, "/v1/models"


_READERS: Mapping[str, Callable[[_Live], Read]] = {
    "llamacpp": _read_llamacpp,
    "ollama": _read_ollama,
    "transformers": _read_transformers,
}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _markers(live: _Live) -> Finding:
    """Whether the template's markers stay whole. A file made from a tokenizer that does not declare them as special
    loads and answers, but sees every prompt in pieces: the bundled model's arithmetic fell from 98 % to 0 that way."""
    path, name = live.endpoint.operational.get("path"), "template markers"
    template = (
        (live.page(f"{live.root}/props") or {}).get("chat_template") if live.endpoint.engine == "llamacpp" else None
    )
    if not template or path is None or not is_gguf(Path(path)):
        return Finding(name, "does not apply", "only llama.cpp splits them, and only of a known file")
    vocabulary = set(open_gguf(Path(path)).get("tokenizer.ggml.tokens") or ())
    markers = sorted(set(_MARKER.findall(template)) & vocabulary)
    ask = {"add_special": False, "parse_special": True}
    try:
        pieces = {
            marker: len(fetch(f"{live.root}/tokenize", {**ask, "content": marker}, headers=live.headers)["tokens"])
            for marker in markers
        }
    except _TROUBLE as exc:
        return Finding(name, "unverified", said(exc) if isinstance(exc, OSError) else "no answer from /tokenize")
    if split := [f"{marker} is {count} tokens" for marker, count in pieces.items() if count != 1]:
        raise Refused(
            "markers of the chat template are split into pieces",
            expected="one token each",
            actual=", ".join(split[:5]),
            remedy="list them as extra_special_tokens in the checkpoint's tokenizer_config.json and convert again",
        )
    return Finding(name, "ok", f"{len(markers)} are one token each: {' '.join(markers[:6])}")


def _thinking(endpoint: Endpoint, spec: BenchSpec | None) -> Finding:
    served = endpoint.settings.get("thinking")
    if spec is None:
        return Finding("thinking", "does not apply", "the bench does not say")
    if served is None:
        return Finding(
            "thinking", "unverified", f"the bench wants it {spec.generation.thinking}; the server does not tell"
        )
    if served != spec.generation.thinking:
        raise Refused(
            "the server thinks where the bench does not, or the reverse",
            expected=f"thinking {spec.generation.thinking}",
            actual=f"thinking {served}",
            remedy=f"start it for this bench: trimoe serve MODEL --bench {spec.name}",
        )
    return Finding("thinking", "ok", str(served))


def _budget(live: _Live, spec: BenchSpec | None) -> Finding:
    """The budget the server enforces (its flag wins over a request) against the bench's."""
    if spec is None or spec.generation.thinking == "off" or spec.serving.llamacpp.reasoning != "budget":
        return Finding("thinking budget", "does not apply", "the bench has none")
    declared, settings, flags = spec.generation.think_budget, live.endpoint.settings, live.flags()
    if "--reasoning-budget" in flags:
        served, source = int(flags[flags.index("--reasoning-budget") + 1]), "command line of the running server"
    elif "think_budget" in settings:
        served, source = settings["think_budget"], "as it was started"
    else:
        return Finding("thinking budget", "unverified", f"{declared} tokens declared; the server does not tell its own")
    if served != declared:
        raise Refused(
            "the served thinking budget is not the declared one",
            expected=f"{declared} tokens",
            actual=f"{'no budget' if served in (None, -1) else f'{served} tokens'} ({source})",
            remedy=f"start it for this bench (trimoe serve MODEL --bench {spec.name}); "
            "transformers and ollama have no budget: use llamacpp or vllm",
        )
    return Finding("thinking budget", "ok", f"{served} tokens ({source})")


def _canary(live: _Live, spec: BenchSpec | None) -> Finding:
    """One real question: the reply has the right shape and model, holds no marker, and its text can be read."""
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
        answer = read_answer(raw, (endpoint.model, f"{endpoint.model}@main"), CANARY_TOKENS)
    except Fault as exc:
        raise Refused(
            "the canary's reply cannot be used",
            expected="a chat completion",
            actual=str(exc),
            remedy="see what the server is, and its log",
        ) from exc
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise MissingPrerequisite(
            "the server makes no reply", expected="a reply to one question", actual=said(exc), remedy="see its log"
        ) from exc
    _readable(answer, spec)
    return Finding("canary", "ok" if answer.content else "unverified", _shown(answer))


def _readable(answer: Answer, spec: BenchSpec | None) -> None:
    remedy = (
        "start it with the reasoning parser of its family (trimoe serve does), and with the model's own chat template"
    )
    if marks := leaks(answer.content):
        raise Refused(
            "markers of the template leak into the reply", expected="none", actual=", ".join(marks), remedy=remedy
        )
    thinks = answer.reasoning and not answer.fallback
    if spec is not None and spec.generation.thinking == "off" and thinks:
        raise Refused(
            "the server thinks although the bench has thinking off",
            expected="no reasoning",
            actual=answer.reasoning[:100],
            remedy=f"trimoe serve MODEL --bench {spec.name}",
        )
    if not answer.content and not answer.reasoning and answer.reply_tokens > 1:
        raise Refused(
            "a reply was generated and none of it can be read",
            expected="text in content, reasoning_content or reasoning",
            actual=f"{answer.reply_tokens} tokens, every field empty",
            remedy=remedy,
        )


def _shown(answer: Answer) -> str:
    text = answer.content or answer.reasoning
    return json.dumps(text[:60], ensure_ascii=False) if text else "the model answered with nothing"
