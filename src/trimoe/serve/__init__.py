"""Inference servers as context managers, one file per engine; a model in, an `Endpoint` out.

    with open_server("model.gguf", spec=spec) as endpoint: ...

Invariants: the endpoint answers and belongs to a server that was started here, or whose address was given; a server
that was started here ends with the block, with all its processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from trimoe.bench.spec import BenchSpec
from trimoe.errors import UsageError
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan, find_engine
from trimoe.serve.requirements import requirements_for
from trimoe.serve.start import running
from trimoe.serve.target import Target, find_target

_OPTIONS = {field.name for field in fields(Options)}
_REQUIREMENTS = {"context", "parallel", "kv", "thinking", "budget", "max_new_tokens"}


@contextmanager
def open_server(
    target: str | Path, *, engine: str | None = None, spec: BenchSpec | None = None, **options: Any
) -> Iterator[Endpoint]:
    """A server for `target` while the block runs; for an address, a connection to the running server.

    `spec` gives thinking, budget, context, slots and cache type; `context`, `parallel`, `kv`, `thinking`, `budget`,
    `max_new_tokens` override it; the other options are those of `Options`. Raises `UsageError`, `BadInput` (the model
    does not load; with the end of the log), `MissingPrerequisite`, `Refused` (another process has the port).
    """
    found, chosen, plan, rest = planned(target, engine=engine, spec=spec, **options)
    if chosen.attach is not None:
        yield chosen.attach(found, rest)
        return
    assert plan is not None
    with running(chosen, found, plan, rest) as endpoint:
        yield endpoint


def planned(
    target: str | Path, *, engine: str | None = None, spec: BenchSpec | None = None, **options: Any
) -> tuple[Target, Engine, Plan | None, Options]:
    """The target, engine and plan of `open_server`, without starting anything; no plan for a running server."""
    if unknown := sorted(set(options) - _OPTIONS - _REQUIREMENTS):
        raise UsageError(f"unknown option {unknown[0]}", expected=", ".join(sorted(_OPTIONS | _REQUIREMENTS)))
    found = find_target(target)
    chosen = find_engine(engine, found)
    rest = Options(**{name: value for name, value in options.items() if name in _OPTIONS})
    if chosen.attach is not None:
        return found, chosen, None, rest
    needs = requirements_for(spec, **{name: value for name, value in options.items() if name in _REQUIREMENTS})
    return found, chosen, chosen.plan(found, needs, rest), rest
