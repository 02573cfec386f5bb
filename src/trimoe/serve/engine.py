"""What an engine is: its plan to start a server, and how the engines are found.

Invariants: an engine is a file in `engines/` with a module-level `ENGINE`; adding one changes no other file. The
printed command is the command that is run. Not guaranteed: that an engine obeys its flags; the preflight checks that.
"""

import importlib
import pkgutil
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trimoe.errors import MissingPrerequisite, TrimoeError, UsageError
from trimoe.llamacpp.tools import cache_folder
from trimoe.serve import process
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.requirements import Requirements
from trimoe.serve.target import KIND_NAMES, Kind, Target


@dataclass(frozen=True)
class Plan:
    """How a server is started: the whole command, and what is known about the server beforehand.

    `ready` is the page that answers 200 once the model is loaded; `slots` is the number of parallel requests; `notes`
    say which requirements the engine cannot meet.
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
    """Commands to run once the server answers, before the first reply (ollama: create the model)."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that those commands read: path -> text."""

    @property
    def text(self) -> str:
        """The command for a shell, preceded by its environment."""
        return self._shell(self.command)

    @property
    def lines(self) -> list[str]:
        """Shell lines: the server, then the files and commands of `prepare` for a second shell."""
        written = [f"printf %s {shlex.quote(text)} > {shlex.quote(path)}" for path, text in self.files.items()]
        return [self.text, *written, *map(self._shell, self.prepare)]

    def _shell(self, command: tuple[str, ...]) -> str:
        return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in self.environment.items()), shlex.join(command)])

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
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
    """Options of a user beside the requirements. Only `extra`, `device` and `dtype` can change replies."""

    port: int | None = None
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None
    directory: Path | None = None
    """Directory with llama.cpp's programs."""
    extra: tuple[str, ...] = ()
    """Further flags, passed through unchanged; they become part of the settings."""
    log: Path | None = None
    model_id: str | None = None
    api_key_env: str | None = None
    answers_as: str | None = None
    """The name that a running server's replies give the model, if it differs from the one that it lists."""
    compare: bool = True
    """Compare replies of the started server with those recorded in the checkpoint's manifest."""


@dataclass(frozen=True)
class Engine:
    """One engine.

    `missing` says why it cannot run here, None if it can; `plan` makes the command; `read` completes the endpoint with
    what the live server reports and refuses a server that serves something else. An engine that starts nothing has
    `attach` instead.
    """

    name: str
    about: str
    kinds: tuple[Kind, ...]
    flags: Mapping[str, str]
    """Requirement -> how the engine is told; the reference page lists them."""
    missing: Callable[[Options], str | None]
    plan: Callable[[Target, Requirements, Options], Plan]
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
            expected=" or ".join(KIND_NAMES[kind] for kind in engine.kinds),
            actual=KIND_NAMES[target.kind],
            remedy=f"use --engine {DEFAULT[target.kind]}, or convert the model (trimoe quantize MODEL -o DIR)",
        )
    return engine


def require(engine: Engine, options: Options) -> None:
    """`MissingPrerequisite` when the engine cannot run here."""
    if why := engine.missing(options):
        raise MissingPrerequisite(
            f"the engine {engine.name} cannot run here",
            actual=why,
            remedy="`trimoe doctor` lists what can",
        )


def why_not(engine: Engine) -> str | None:
    """Why an engine cannot run here, None if it can; an error counts as a reason."""
    try:
        return engine.missing(Options())
    except TrimoeError as exc:
        return exc.subject


def log_folder() -> Path:
    """Folder of the servers' logs, beside the builds of llama.cpp; each port keeps the log of its last server."""
    return cache_folder().parent / "serve"
