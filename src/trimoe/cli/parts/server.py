"""Options of `trimoe eval` for servers: engine, concurrency, timeouts, guards, preflight."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from trimoe.cli.serve import ENGINES
from trimoe.evaluate.evaluate import IN_PROCESS
from trimoe.evaluate.guards import NAMES
from trimoe.evaluate.request_limits import RequestLimits

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ServingOptions:
    """`request_limits` is None if no option sets it; then the bench's spec decides. `server` is for `open_server`."""

    engine: str | None
    server: dict[str, Any]
    request_limits: RequestLimits | None
    ignore_guards: tuple[str, ...]
    preflight: bool


def serving_options(command: F) -> F:
    """Adds the options; the command passes them on to `options_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice([IN_PROCESS, *ENGINES]),
        help="What runs the model: this process (trimoe), or a server that is started for the run "
        "(default: trimoe for a checkpoint, llamacpp for a .gguf file).",
    ),
    click.option("--model-id", metavar="ID", help="The model to request, if a server has more than one."),
    click.option(
        "--answers-as",
        metavar="NAME",
        help="The name that replies give the model, if the server lists it under another.",
    ),
    click.option(
        "--flag",
        "extra",
        multiple=True,
        metavar="FLAG",
        help="Extra flag for the server that is started, passed on unchanged; may be repeated (--flag=-ngl --flag=99).",
    ),
    click.option("--api-key-env", metavar="NAME", help="Environment variable with the server's API key."),
    click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        help="Concurrent requests (default: the server's slots, or the bench's setting).",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Longest wait for one reply (default: the bench's setting).",
    ),
    click.option(
        "--deadline",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Longest time for one sample, including all attempts and pauses (default: three timeouts).",
    ),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=8,
        show_default=True,
        help="Retries after a timeout, a lost connection, status 429 or 5xx, or a damaged reply.",
    ),
    click.option(
        "--ignore-guard",
        "ignore_guards",
        type=click.Choice(NAMES),
        multiple=True,
        help="Resume although this guard paused the run. Recorded, and shown with the score.",
    ),
    click.option(
        "--no-preflight",
        is_flag=True,
        help="Do not check the server before the first request. Recorded, and shown with the score.",
    ),
)


def options_of(
    *,
    engine: str | None,
    model_id: str | None,
    api_key_env: str | None,
    answers_as: str | None,
    extra: tuple[str, ...],
    concurrency: int | None,
    timeout: float | None,
    deadline: float | None,
    retries: int,
    ignore_guards: tuple[str, ...],
    no_preflight: bool,
) -> ServingOptions:
    """The options in the form that `evaluate` takes."""
    request_limits = None
    if concurrency or timeout or deadline or retries != RequestLimits.retries:
        limit = timeout or RequestLimits.timeout_s
        request_limits = RequestLimits(concurrency or RequestLimits.concurrency, limit, deadline or 3 * limit, retries)
    server = {"model_id": model_id, "api_key_env": api_key_env, "answers_as": answers_as, "extra": extra or None}
    return ServingOptions(
        engine, {k: v for k, v in server.items() if v is not None}, request_limits, ignore_guards, not no_preflight
    )
