"""Facts that a running server reports: model, engine, context, settings.

Invariants: only values that do not change while a server runs are kept, so two readings of one server are equal and a
server that was restarted with other settings reads differently. Values that cannot be read are left out, never guessed.
Not guaranteed: completeness; a flag that a server does not report can change unnoticed.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from trimoe.errors import MissingPrerequisite, UsageError
from trimoe.io.canonical import sha256_json
from trimoe.serve.endpoint import Endpoint

_MODEL = ("root", "meta")  # keys of an entry of /models; others change with each request
_ENGINES = {"llamacpp": "llamacpp", "vllm": "vllm", "library": "ollama"}  # by `owned_by`
# Added to every request: vLLM leaves special tokens out of the text, which joins a thought to the answer.
_BODIES: Mapping[str, Mapping[str, Any]] = {"vllm": {"skip_special_tokens": False}}
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_HAS_NOT = (401, 403, 404, 405, 501)  # the page does not exist or is private
_FEW = 5  # names in a message


@dataclass(frozen=True)
class Facts:
    """`model` describes the weights, `settings` what else may change a reply; `context` is in tokens per slot.

    None, or a missing key: the server does not report it.
    """

    engine: str
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    context: int | None
    slots: int | None

    @property
    def digest(self) -> str:
        """One value for comparison."""
        return sha256_json([self.engine, dict(self.model), dict(self.settings), self.context])


def connect(url: str, *, model: str | None = None, api_key_env: str | None = None) -> Endpoint:
    """The endpoint of a running OpenAI-compatible server; `model` is needed where it serves more than one.

    Raises `MissingPrerequisite` if no server answers, `UsageError` if the model is missing or not the only one.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url} is not the address of a server", expected="http://HOST:PORT or http://HOST:PORT/v1")
    base = url.rstrip("/").removesuffix("/chat/completions")
    base = base if urlsplit(base).path.strip("/") else f"{base}/v1"
    return asyncio.run(_connect(base, model, api_key_env))


async def _connect(url: str, model: str | None, api_key_env: str | None) -> Endpoint:
    async with aiohttp.ClientSession(headers=headers(api_key_env)) as session:
        try:
            listed = await _models(session, url)
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            raise MissingPrerequisite(
                f"no server answers at {url}",
                expected="an OpenAI-compatible server that lists its models",
                actual=f"{type(exc).__name__}: {exc}",
                remedy="start it, or correct the address",
            ) from exc
        if (model is None and len(listed) != 1) or (model is not None and listed and model not in listed):
            raise UsageError(
                f"which model of {url}?" if model is None else f"{url} does not serve {model}",
                expected="one of " + ", ".join(list(listed)[:_FEW]) if listed else "a server with a model",
                actual=f"{len(listed)} models are served",
                remedy="pass --model-id",
            )
        name = model if model is not None else next(iter(listed))
        facts = await _facts(session, url, listed.get(name, {}))
    return Endpoint(
        url,
        name,
        facts.engine,
        context=facts.context,
        slots=facts.slots,
        settings=dict(facts.settings),
        operational={"started by": "somebody else", "says of its model": dict(facts.model)},
        body=_BODIES.get(facts.engine, {}),
        also_named=other_names(name, listed),
        api_key_env=api_key_env,
    )


def other_names(name: str, listed: Iterable[str]) -> tuple[str, ...]:
    """Names under which replies may name a model too: without its owner, and without ":latest".

    A server may list `qwen/name` and answer as `name`. A name that another listed model has, or may have, is not taken.
    """
    short, plain = name.rpartition("/")[2], name.removesuffix(":latest")
    found = {short, short.removesuffix(":latest"), plain, f"{plain}:latest"} - {name, ""}
    rest = [row for row in listed if row != name]
    others = {one for row in rest for one in (row, row.rpartition("/")[2], row.removesuffix(":latest"))}
    return tuple(sorted(found - others))


async def read_facts(session: aiohttp.ClientSession, endpoint: Endpoint) -> Facts:
    """What the endpoint's server reports now. Raises aiohttp's errors if it does not answer."""
    try:
        listed = await _models(session, endpoint.url)
    except aiohttp.ClientResponseError as exc:
        if exc.status not in _HAS_NOT:
            raise
        listed = {}  # listing models is optional
    return await _facts(session, endpoint.url, listed.get(endpoint.model, {}))


def headers(api_key_env: str | None) -> dict[str, str]:
    """The authorization header with the key in an environment variable. Raises `MissingPrerequisite` if it is unset."""
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env)
    if not key:
        raise MissingPrerequisite(
            f"{api_key_env} is not set", expected="the key of the server", remedy=f"export {api_key_env}=..."
        )
    return {"Authorization": f"Bearer {key}"}


async def _models(session: aiohttp.ClientSession, url: str) -> dict[str, Mapping[str, Any]]:
    body = await _get(session, f"{url}/models")
    rows = body.get("data")
    if not isinstance(rows, list):
        raise ValueError("the answer has no list of models")
    return {row["id"]: row for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)}


async def _facts(session: aiohttp.ClientSession, url: str, listed: Mapping[str, Any]) -> Facts:
    engine = _ENGINES.get(str(listed.get("owned_by", "")), "endpoint")
    model: dict[str, Any] = {key: listed[key] for key in _MODEL if listed.get(key) is not None}
    settings: dict[str, Any] = {}
    context, slots = _count(listed.get("max_model_len")), None
    root = url.removesuffix("/v1")
    if engine == "llamacpp" and (props := await _optional(session, f"{root}/props")):
        generation = props.get("default_generation_settings")
        generation = generation if isinstance(generation, Mapping) else {}
        model["file"] = str(props.get("model_path", "")).rpartition("/")[2]
        model["template"] = sha256_json(props.get("chat_template"))[:16]
        settings["build"] = props.get("build_info")
        settings["defaults"] = sha256_json(generation.get("params"))[:16]
        context, slots = _count(generation.get("n_ctx")), _count(props.get("total_slots"))
    if engine == "vllm" and (version := await _optional(session, f"{root}/version")):
        settings["build"] = version.get("version")
    return Facts(engine, model, settings, context, slots)


async def _optional(session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
    """A page that not every server has; empty without it."""
    try:
        return await _get(session, url)
    except aiohttp.ClientResponseError as exc:
        if exc.status not in _HAS_NOT:
            raise  # busy or still loading: whether the page exists is not known
        return {}


async def _get(session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
    async with session.get(url, timeout=_TIMEOUT) as response:
        response.raise_for_status()
        body = await response.json(content_type=None)
    if not isinstance(body, Mapping):
        raise ValueError("not a JSON object")
    return body


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
