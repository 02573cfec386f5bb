"""Servers as context managers, one file per engine; a model in, an `Endpoint` out.

    with open_server("model.gguf", spec=spec) as endpoint: ...

Invariants: what is yielded answers, is ours (or was named by its address), and is gone afterwards with its processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from trimoe.bench.spec import BenchSpec
from trimoe.errors import UsageError
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan, Target, find_engine, find_target, running
from trimoe.serve.wanted import Wanted, wanted_for

_OPTIONS = {field.name for field in fields(Options)}
_WANTED = {"context", "parallel", "kv", "thinking", "budget", "max_new_tokens"}


@contextmanager
def open_server(
    target: str | Path, *, engine: str | None = None, spec: BenchSpec | None = None, **options: Any
) -> Iterator[Endpoint]:
    """A server for `target` while the block runs; a running one is only connected to.

    `spec` gives thinking, budget, context, slots and cache type; `context`, `parallel`, `kv`, `thinking`, `budget`,
    `max_new_tokens` win over it; the other options are those of `Options`. Raises `UsageError`, `BadInput` (the model
    does not load; with the end of the log), `MissingPrerequisite`, `Refused` (the port is someone else's).
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
    """What `open_server` would do, without doing it; the plan is None for a running server."""
    if unknown := sorted(set(options) - _OPTIONS - _WANTED):
        raise UsageError(f"unknown option {unknown[0]}", expected=", ".join(sorted(_OPTIONS | _WANTED)))
    found = find_target(target)
    chosen = find_engine(engine, found)
    rest = Options(**{name: value for name, value in options.items() if name in _OPTIONS})
    if chosen.attach is not None:
        return found, chosen, None, rest
    wanted: Wanted = wanted_for(spec, **{name: value for name, value in options.items() if name in _WANTED})
    return found, chosen, chosen.plan(found, wanted, rest), rest
