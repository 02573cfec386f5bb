"""Preflight check: a server leaves the special tokens of a thought in the text, or separates the thought.

A server that drops special tokens from the text joins a thought to the answer without a trace. vLLM is asked to keep
them (`skip_special_tokens: false` in every request), and one probe verifies it: a reply of one token, which a logit
bias makes the opening tag of a thought. `transformers serve` has no such option: there the tokenizer's file is read.
"""

import json
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput
from trimoe.evaluate.answer import REASONING_FIELDS
from trimoe.evaluate.live_server import TROUBLE, LiveServer, whole
from trimoe.evaluate.local_checks import Finding
from trimoe.evaluate.markers import markers
from trimoe.io.jsonfile import read_json
from trimoe.serve.process import fetch
from trimoe.serve.target import chat_template

NAME = "special tokens"
_BIAS = 100  # vLLM's largest
_PARSER = "--reasoning-parser"


def check_special_tokens(live: LiveServer) -> Finding:
    """Whether a thought stays visible in the text of a reply."""
    if live.endpoint.engine == "vllm":
        return _probed(live)
    path = live.endpoint.operational.get("path")
    if live.endpoint.engine == "transformers" and path is not None:
        return _from_tokenizer(Path(path))
    return Finding(NAME, "does not apply", "checked on vLLM and transformers, which can drop them from the text")


def _probed(live: LiveServer) -> Finding:
    try:
        tag, token = _single_token(live)
        message = _reply(live, token)
    except TROUBLE:
        return Finding(NAME, "unverified", "the server did not answer the probe")
    if not tag:
        return Finding(NAME, "ok", "no known tag of a thought is one token of this model")
    if tag in str(message.get("content") or ""):
        return Finding(NAME, "ok", f"{tag} stays in the text")
    apart = any(message.get(field) for field in REASONING_FIELDS)
    if apart or live.endpoint.settings.get("reasoning_parser") or _PARSER in live.flags():
        return Finding(NAME, "ok", f"a reasoning parser takes {tag}")
    return Finding(NAME, "unverified", f"{tag} is missing in the text: a thought cannot be told from the answer")


def _single_token(live: LiveServer) -> tuple[str, int]:
    """A tag of a thought that is one token of the served model, with its id; no tag if there is none."""
    for thought in markers().thought:
        body = {"model": live.endpoint.model, "prompt": thought.opens, "add_special_tokens": False}
        tokens = fetch(f"{live.root}/tokenize", body, headers=live.headers)["tokens"]
        if len(tokens) == 1 and whole(tokens[0]) is not None:
            return thought.opens, tokens[0]
    return "", 0


def _reply(live: LiveServer, token: int) -> dict[str, Any]:
    """The message of a reply of this one token."""
    endpoint = live.endpoint
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "temperature": 0,
        **endpoint.body,
        "logit_bias": {str(token): _BIAS},
    }
    found = fetch(f"{endpoint.url}/chat/completions", body, timeout=600, headers=live.headers)
    message: dict[str, Any] = dict(found["choices"][0]["message"])
    return message


def _from_tokenizer(path: Path) -> Finding:
    """transformers drops what the tokenizer declares as special."""
    file = path / "tokenizer.json"
    try:
        added = read_json(file, "the tokenizer").get("added_tokens") if file.is_file() else None
    except BadInput:
        added = None
    if not isinstance(added, list):
        return Finding(NAME, "unverified", "the model has no tokenizer.json that lists its special tokens")
    special = {str(row.get("content")) for row in added if isinstance(row, dict) and row.get("special")}
    tags = {text for thought in markers().thought for text in (thought.opens, thought.closes)} | set(markers().control)
    template = chat_template(path)
    dropped = sorted(tag for tag in special & tags - {"<bos>", "<eos>"} if tag in template)
    if not dropped:
        return Finding(NAME, "ok", "no tag of a thought in the chat template is a special token")
    shown = json.dumps(dropped[:5], ensure_ascii=False)
    return Finding(
        NAME, "unverified", f"transformers leaves {shown} out of the text: a thought cannot be told from the answer"
    )
