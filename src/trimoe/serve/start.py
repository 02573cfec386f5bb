"""Starting a server from a plan: verified to be ours, warmed up, and stopped.

Invariant: a server is handed out only after it listens on our port from a process of ours, reports the model that was
asked for, and has completed a real reply.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, Refused
from trimoe.io.atomic import publish_file
from trimoe.io.jsonfile import read_json
from trimoe.serve import process
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan, log_folder, require
from trimoe.serve.known import remembered
from trimoe.serve.loaded import compare_replies, require_loaded
from trimoe.serve.target import Target


@contextmanager
def running(engine: Engine, target: Target, plan: Plan, options: Options) -> Iterator[Endpoint]:
    """A server while the block runs: started, verified to be ours, warmed up, and stopped with all its processes."""
    require(engine, options)
    assert target.path is not None
    hash_at_start = target.fingerprint()
    log = options.log or log_folder() / f"{engine.name}-{plan.port}.log"
    with process.started(plan.command, plan.port, log, plan.environment) as server:
        server.wait(plan.ready, engine.name)
        server.require_own_port(engine.name)
        require_loaded(log, _layers(target))
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
        endpoint = engine.read(server, plan, endpoint)
        compared = compare_replies(endpoint, target) if options.compare else "replies not compared: switched off"
        endpoint = replace(endpoint, operational={**endpoint.operational, "compared": compared})
        with remembered(endpoint, plan.port, server.supervisor.pid):
            yield endpoint


def _layers(target: Target) -> int | None:
    """Decoder layers of a checkpoint directory, None if config.json does not say."""
    assert target.path is not None
    if target.kind != "checkpoint":
        return None
    config = read_json(target.path / "config.json", "the model's config")
    count = (config.get("text_config") or config).get("num_hidden_layers")
    return count if isinstance(count, int) else None


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
                f"{shlex.join(command)} failed",
                expected="exit code 0",
                actual=f"exit code {answer.returncode}: {(answer.stderr or answer.stdout)[-500:]}; {server.tail()}",
                remedy="see the server's log; `trimoe serve --print` shows all commands",
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
            f"{endpoint.engine} answers, but does not complete a chat",
            expected="a reply of 4 tokens",
            actual=f"{process.said(exc)}; {server.tail()}",
            remedy="see the server's log; `trimoe serve --print` shows the command",
        ) from exc


def must_serve(what: str, expected: str, actual: object) -> None:
    """Raise `Refused` if the server reports another model than the one it was started with."""
    if str(actual) != expected:
        raise Refused(
            f"the server serves another {what}",
            expected=expected,
            actual=str(actual),
            remedy="stop the other server, or choose another --port",
        )


def with_facts(endpoint: Endpoint, **facts: Any) -> Endpoint:
    """The endpoint with facts from the live server; settings are added, not replaced."""
    settings = {**endpoint.settings, **{k: v for k, v in facts.pop("settings", {}).items() if v is not None}}
    return replace(endpoint, settings=settings, **facts)
