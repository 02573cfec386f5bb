"""What an engine is, and the one way every engine is started, asked, and stopped.

Invariants: an engine is a file in this folder with a module-level `ENGINE`; adding one changes no other file. A server
is handed out only after it listens on our port from a process of ours, says it serves what was asked for, and has made
a real reply. The printed command is the one that is run. Not guaranteed: that an engine obeys; preflight asks.
"""

import hashlib
import importlib
import os
import pkgutil
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trimoe.errors import BadInput, MissingPrerequisite, Refused, TrimoeError, UsageError
from trimoe.io.publish import publish_file, read_json, sha256_file
from trimoe.llamacpp.tools import cache_folder
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.family.file import family_of
from trimoe.model.family.serving import Serving
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.model import open_gguf_model
from trimoe.serve import process
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.wanted import Wanted

Kind = Literal["gguf", "checkpoint", "url"]


@dataclass(frozen=True)
class Target:
    """What is to be served. `path` is absolute (None for a running server), `address` the URL then."""

    kind: Kind
    name: str
    path: Path | None = None
    address: str = ""
    serving: Serving | None = None

    def fingerprint(self) -> str:
        """Content hash of the model: the one that runs are known by. Reads samples, of an unknown kind all."""
        assert self.path is not None
        try:
            if self.kind == "gguf":
                return open_gguf_model(self.path).fingerprint
            return open_checkpoint(self.path).fingerprint
        except BadInput:  # not a mixture of experts: it can be served all the same
            return _files_sha256(self.path)


@dataclass(frozen=True)
class Plan:
    """How a server is started: the whole command, and what is known of it beforehand.

    `ready` is the page that answers 200 when the model is loaded; `slots` requests are answered at once; `notes` are
    wishes the engine cannot fulfil, in words.
    """

    engine: str
    command: tuple[str, ...]
    port: int
    model_id: str
    ready: str
    context: int | None
    slots: int | None
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    operational: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prepare: tuple[tuple[str, ...], ...] = ()
    """Commands run once the server answers, before it is warm (ollama: create the model)."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files those commands read: path -> text. Written before them."""

    @property
    def text(self) -> str:
        """The command for a shell, with its environment before it."""
        return self._shell(self.command)

    @property
    def lines(self) -> list[str]:
        """Everything for a shell: the server, then the files and commands of `prepare` for a second shell."""
        written = [f"printf %s {shlex.quote(text)} > {shlex.quote(path)}" for path, text in self.files.items()]
        return [self.text, *written, *map(self._shell, self.prepare)]

    def _shell(self, command: tuple[str, ...]) -> str:
        return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in self.environment.items()), shlex.join(command)])

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "engine": self.engine,
            "command": list(self.command),
            "environment": dict(self.environment),
            "files": dict(self.files),
            "prepare": [list(command) for command in self.prepare],
            "shell": self.lines,
            "url": f"http://{process.HOST}:{self.port}/v1",
            "model": self.model_id,
            "context": self.context,
            "slots": self.slots,
            "settings": dict(self.settings),
            "body": dict(self.body),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Options:
    """What a user may say beside the bench. Operational, except what `wanted` took from them already."""

    port: int | None = None
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None
    directory: Path | None = None
    """llama.cpp's programs."""
    extra: tuple[str, ...] = ()
    """Further flags, passed on as they are; they become part of the settings."""
    log: Path | None = None
    model_id: str | None = None
    api_key_env: str | None = None


@dataclass(frozen=True)
class Engine:
    """One engine. `missing` says why it cannot run here, None if it can; `plan` makes the command; `read` completes the
    endpoint with what the live server says and refuses one that serves something else. `attach` replaces all of that
    for an engine that starts nothing."""

    name: str
    about: str
    kinds: tuple[Kind, ...]
    flags: Mapping[str, str]
    """What is wanted -> the engine's words for it; the reference page is made of this."""
    missing: Callable[[Options], str | None]
    plan: Callable[[Target, Wanted, Options], Plan]
    read: Callable[[process.Server, Plan, Endpoint], Endpoint]
    attach: Callable[[Target, Options], Endpoint] | None = None


@cache
def engines() -> dict[str, Engine]:
    """All engines by name."""
    folder = importlib.import_module("trimoe.serve.engines")
    modules = [
        importlib.import_module(f"{folder.__name__}.{info.name}") for info in pkgutil.iter_modules(folder.__path__)
    ]
    found = [module.ENGINE for module in modules if isinstance(getattr(module, "ENGINE", None), Engine)]
    return {engine.name: engine for engine in sorted(found, key=lambda engine: engine.name)}


DEFAULT: Mapping[Kind, str] = {"gguf": "llamacpp", "checkpoint": "transformers", "url": "endpoint"}


def find_engine(name: str | None, target: Target) -> Engine:
    """The engine by name, or the default for this kind of model. Raises `UsageError`."""
    engine = engines().get(name or DEFAULT[target.kind])
    if engine is None:
        raise UsageError(f"no engine {name}", expected=", ".join(engines()), actual=str(name))
    if target.kind not in engine.kinds:
        raise UsageError(
            f"{engine.name} does not serve {target.name}",
            expected=" or ".join(_KINDS[kind] for kind in engine.kinds),
            actual=_KINDS[target.kind],
            remedy=f"use --engine {DEFAULT[target.kind]}, or convert the model (trimoe quantize MODEL -o DIR)",
        )
    return engine


_KINDS: Mapping[Kind, str] = {"gguf": "a GGUF file", "checkpoint": "a checkpoint directory", "url": "an address"}


def find_target(model: str | Path) -> Target:
    """What a user named: an address, a GGUF file, or a checkpoint directory. Raises `BadInput`."""
    text = str(model)
    if "://" in text:
        return Target("url", text, address=text)
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        serving = serving_of(_model_type(path), chat_template(path))
        return Target("checkpoint", path.resolve().name, path, serving=serving)
    if path.is_file() and path.suffix == ".gguf":
        file = open_gguf(path)
        template = str(file.get("tokenizer.chat_template") or "")
        return Target("gguf", path.stem, path, serving=serving_of(str(file.get("general.architecture")), template))
    raise BadInput(
        f"{text} cannot be served",
        expected="a checkpoint directory, a .gguf file, or an address (http://...)",
        actual="no such file" if not path.exists() else "another kind of file",
    )


def serving_of(kind: str, template: str) -> Serving | None:
    """What is known about serving models of this type (or GGUF architecture) with this chat template."""
    family = family_of(kind)
    return family.serving_for(template) if family else None


def _model_type(path: Path) -> str:
    config = read_json(path / "config.json", "the model's config")
    return str(config.get("model_type", ""))


def chat_template(path: Path) -> str:
    """The chat template of a checkpoint directory: its own file, or the tokenizer's entry; empty without one."""
    own = path / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    config = path / "tokenizer_config.json"
    entry = read_json(config, "the tokenizer's config").get("chat_template") if config.is_file() else None
    if isinstance(entry, list):  # several, by name
        entry = next(
            (row.get("template") for row in entry if isinstance(row, dict) and row.get("name") == "default"), ""
        )
    return entry if isinstance(entry, str) else ""


def _files_sha256(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}|{sha256_file(file)}|".encode())
    return digest.hexdigest()


def require(engine: Engine, options: Options) -> None:
    """`MissingPrerequisite` when the engine cannot run here."""
    if why := engine.missing(options):
        raise MissingPrerequisite(
            f"the engine {engine.name} cannot run here",
            actual=why,
            remedy="`trimoe doctor` lists what can",
        )


@contextmanager
def running(engine: Engine, target: Target, plan: Plan, options: Options) -> Iterator[Endpoint]:
    """The server while the block runs: started, shown to be ours, warmed up; stopped without a trace."""
    require(engine, options)
    assert target.path is not None
    hash_at_start = target.fingerprint()
    log = options.log or log_folder() / f"{engine.name}-{plan.port}.log"
    with process.started(plan.command, plan.port, log, plan.environment) as server:
        server.wait(plan.ready, engine.name)
        server.require_own_port(engine.name)
        _prepare(plan, server)
        endpoint = Endpoint(
            f"{server.root}/v1",
            plan.model_id,
            engine.name,
            model_hash=hash_at_start,
            context=plan.context,
            slots=plan.slots,
            settings=dict(plan.settings),
            operational={
                "command": plan.text,
                "log": str(log),
                "path": str(target.path),
                "port": plan.port,
                "notes": list(plan.notes),
                **plan.operational,
            },
            body=dict(plan.body),
        )
        warm_up(endpoint, server)
        yield engine.read(server, plan, endpoint)


def log_folder() -> Path:
    """Where logs of servers are kept: `serve` beside the builds of llama.cpp; a port's log replaces its last one."""
    return cache_folder().parent / "serve"


def _prepare(plan: Plan, server: process.Server) -> None:
    for path, text in plan.files.items():
        with publish_file(Path(path), overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for command in plan.prepare:
        answer = subprocess.run(
            command, env={**os.environ, **plan.environment}, capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            raise BadInput(
                f"{shlex.join(command)} failed", actual=f"{(answer.stderr or answer.stdout)[-500:]}; {server.tail()}"
            )


def warm_up(endpoint: Endpoint, server: process.Server) -> None:
    """A real reply of at most 4 tokens: a server may list its models long before it can answer. Raises `BadInput`."""
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 4,
        "temperature": 0,
        **endpoint.body,
    }
    try:
        reply = process.fetch(f"{endpoint.url}/chat/completions", body, timeout=process.WARM_UP)
        if not reply["choices"][0]["message"]:
            raise ValueError("an empty choice")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as exc:
        raise BadInput(
            f"{endpoint.engine} answers, but makes no reply",
            expected="a reply of 4 tokens",
            actual=f"{process.said(exc)}; {server.tail()}",
        ) from exc


def must_serve(what: str, expected: str, actual: object) -> None:
    """`Refused` when the server says it serves another model than the one it was started with."""
    if str(actual) != expected:
        raise Refused(
            f"the server serves another {what}",
            expected=expected,
            actual=str(actual),
            remedy="stop the other server, or choose another --port",
        )


def with_facts(endpoint: Endpoint, **facts: Any) -> Endpoint:
    """The endpoint with what the live server said; settings are added to, not replaced."""
    settings = {**endpoint.settings, **{k: v for k, v in facts.pop("settings", {}).items() if v is not None}}
    return replace(endpoint, settings=settings, **facts)


def why_not(engine: Engine) -> str | None:
    """Why an engine cannot run here; errors count as reasons."""
    try:
        return engine.missing(Options())
    except TrimoeError as exc:
        return exc.subject
