"""Evaluates a model on benches: a checkpoint in this process, a model served by an engine, or a running server.

Invariants: benches that need the same server share one, in the given order. Unless disabled, a server passes its
preflight for every bench before the first request; a run without a preflight is marked.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench
from trimoe.bench.catalog import chosen_benches
from trimoe.errors import UsageError
from trimoe.evaluate.answerer import Answerer
from trimoe.evaluate.in_process import InProcess
from trimoe.evaluate.log.summary import Evaluation, RunSummary
from trimoe.evaluate.loop import Settings, run_benches
from trimoe.evaluate.preflight import check
from trimoe.evaluate.request_limits import RequestLimits
from trimoe.evaluate.tally import Show
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.device import require_device
from trimoe.sandbox import Policy, current
from trimoe.serve import open_server
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.requirements import requirements_for

IN_PROCESS = "trimoe"  # the engine name of this process


def evaluate(
    model: str | os.PathLike[str] | Endpoint,
    *,
    bench: str | Bench | Sequence[str | Bench] | None = None,
    suite: str | None = None,
    log: str | Path,
    name: str | None = None,
    engine: str | None = None,
    limit: int | None = None,
    data: str | Path | None = None,
    smoke: bool = False,
    batch_size: int = 128,
    device: str = "cpu",
    server: Mapping[str, Any] | None = None,
    request_limits: RequestLimits | None = None,
    preflight: bool = True,
    sandbox: Policy | None = None,
    ignore_guards: Iterable[str] = (),
    exclude_errors: bool = False,
    progress: Progress | None = None,
    show: Show | None = None,
) -> Evaluation:
    """Generate, judge and store what is missing of each bench in the run log `log`. The same call resumes.

    `model` is a checkpoint directory, evaluated in this process unless `engine` names a server to start; a .gguf file,
    served by llama.cpp; the address of an OpenAI-compatible server; or an `Endpoint`. `bench` is a name, a TOML file,
    several separated by commas, or a list; `suite` names a set of benches instead; `smoke` takes a few rows of each.
    `limit` takes the first rows of each bench; a raised limit continues the same run. `name` labels the model in
    tables. `data` is a folder of local data sets.

    In this process, `batch_size` replies are generated at once on `device`. For servers, `server` holds options of
    `open_server`, `request_limits` overrides concurrency and timeouts of the bench's spec, and `preflight=False` skips
    the checks of the server. `sandbox` selects how generated code is run. `ignore_guards` names guards that must not
    pause the run. `exclude_errors` gives a score even if some rows could not be scored. The last three are recorded
    and shown.

    Raises `UsageError`, `CheckpointError`, `BenchError`, `RunLogError`, `MissingPrerequisite`, and `Refused` when the
    preflight or a guard refuses, or the server changes.

    >>> run = trimoe.evaluate(model, bench="tiny-code", log="runs.db", name="base", limit=4)
    >>> run.scores
    {'tiny-code': 1.0}
    """
    settings = Settings(
        limit=limit,
        name=name,
        data=Path(data) if data is not None else None,
        sandbox=sandbox or current(),
        ignored=frozenset(ignore_guards),
        exclude_errors=exclude_errors,
        show=show,
        progress=progress,
    )
    settings.validate()
    benches = chosen_benches(bench, suite, smoke=smoke)
    target = model if isinstance(model, str | Endpoint) else Path(model)
    if isinstance(target, Endpoint) or is_served(target, engine):
        runs = _on_servers(target, benches, Path(log), settings, engine, dict(server or {}), request_limits, preflight)
    else:
        if server:
            raise UsageError(
                f"{target} is evaluated in this process, which takes no options of a server",
                expected="an engine that starts a server",
                actual=", ".join(sorted(server)),
                remedy="add --engine, or leave these options out",
            )
        require_device(device)
        local = InProcess(open_checkpoint(target), batch_size=batch_size, device=device, path=str(target))
        runs = run_benches([(one, local) for one in benches], log, settings)
    return Evaluation(Path(log), tuple(runs))


def is_served(model: str | Path, engine: str | None) -> bool:
    """Whether a server answers: for addresses, .gguf files, and checkpoints with an `engine` other than "trimoe"."""
    if "://" in str(model) or str(model).endswith(".gguf"):
        if engine == IN_PROCESS:
            raise UsageError(
                f"{model} cannot be evaluated in this process",
                expected="a checkpoint directory",
                remedy="leave --engine out, or give the checkpoint",
            )
        return True
    return engine not in (None, IN_PROCESS)


def _on_servers(
    target: str | Path | Endpoint,
    benches: Sequence[Bench],
    log: Path,
    settings: Settings,
    engine: str | None,
    options: dict[str, Any],
    request_limits: RequestLimits | None,
    preflight: bool,
) -> list[RunSummary]:
    from trimoe.evaluate.server import Server  # imports aiohttp, which evaluation in this process does without

    model = None if isinstance(target, Endpoint) or "://" in str(target) else Path(target)
    if model is not None:
        settings = replace(settings, name=settings.name or model.stem)
    options = {"compare": preflight, **options}  # its replies against recorded ones: a check of the server, too
    runs: list[RunSummary] = []
    for group in _by_server(benches, running=model is None):
        with _opened(target, engine, group[0], options) as endpoint:
            checked = (
                [_checked(endpoint, bench, model, settings, log) for bench in group]
                if preflight
                else [(endpoint, None) for _ in group]
            )
            work: list[tuple[Bench, Answerer]] = [
                (bench, Server(found, request_limits, report))
                for bench, (found, report) in zip(group, checked, strict=True)
            ]
            runs += run_benches(work, log, settings)
    return runs


def _opened(
    target: str | Path | Endpoint, engine: str | None, bench: Bench, options: dict[str, Any]
) -> AbstractContextManager[Endpoint]:
    if isinstance(target, Endpoint):
        return nullcontext(target)
    return open_server(target, engine=engine, spec=bench.protocol, **options)


def _by_server(benches: Sequence[Bench], *, running: bool) -> Iterator[list[Bench]]:
    """Groups of consecutive benches that need the same server. A running server is used for all."""
    for _, group in groupby(benches, key=lambda bench: None if running else requirements_for(bench.protocol)):
        yield list(group)


def _checked(
    endpoint: Endpoint, bench: Bench, model: Path | None, settings: Settings, log: Path
) -> tuple[Endpoint, dict[str, Any]]:
    """The endpoint as the preflight found it, and the report of the preflight."""
    docs = bench.docs(settings.data)[: settings.limit] if endpoint.engine == "vllm" else []
    report = check(
        endpoint,
        bench.protocol,
        max_new_tokens=bench.max_new_tokens,
        rows=min(bench.rows, settings.limit or bench.rows),
        model=model,
        data=settings.data,
        log_path=log,
        longest=max((doc.chat() for doc in docs), key=_characters, default=()),
    )
    # The context is part of the run's identity: the one that connecting found must not depend on the preflight.
    return replace(report.endpoint, context=endpoint.context or report.endpoint.context), report.as_dict()


def _characters(chat: Sequence[Mapping[str, str]]) -> int:
    return sum(len(turn["content"]) for turn in chat)
