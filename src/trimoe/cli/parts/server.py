"""The options of `trimoe eval` that concern a server: how it is asked, and what may be switched off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from trimoe.cli.serve import ENGINES
from trimoe.errors import UsageError
from trimoe.evaluate.client import Patience
from trimoe.evaluate.guards import NAMES

IN_PROCESS = "trimoe"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ServingOptions:
    """`patience` is None where nothing was said: then the bench's spec decides. `server` is for `open_server`."""

    engine: str | None
    server: dict[str, Any]
    patience: Patience | None
    ignore_guards: tuple[str, ...]
    preflight: bool

    def served(self, model: str) -> bool:
        """Whether the model is asked over HTTP; a checkpoint without an engine named runs in this process."""
        if "://" in model or model.endswith(".gguf"):
            if self.engine == IN_PROCESS:
                raise UsageError(f"{model} does not run in this process", expected="a checkpoint directory")
            return True
        return self.engine not in (None, IN_PROCESS)


def serving_options(command: F) -> F:
    """Adds the options; the command receives what `options_of` takes."""
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
    click.option("--model-id", metavar="ID", help="The model to ask for, where a server serves more than one."),
    click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's key."),
    click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        help="Requests under way at once (default: the server's slots, or what the bench says).",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Longest wait for one reply (default: what the bench says).",
    ),
    click.option(
        "--deadline",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Longest time for one sample, with all attempts and pauses (default: three timeouts).",
    ),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=8,
        show_default=True,
        help="Further attempts after a timeout, a lost connection, status 429 or 5xx, or a damaged reply.",
    ),
    click.option(
        "--ignore-guard",
        "ignore_guards",
        type=click.Choice(NAMES),
        multiple=True,
        help="Go on although this guard paused the run. Recorded, and shown with the score.",
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
    concurrency: int | None,
    timeout: float | None,
    deadline: float | None,
    retries: int,
    ignore_guards: tuple[str, ...],
    no_preflight: bool,
) -> ServingOptions:
    """The options as the evaluation takes them."""
    patience = None
    if concurrency or timeout or deadline or retries != Patience.retries:
        limit = timeout or Patience.timeout_s
        patience = Patience(concurrency or Patience.concurrency, limit, deadline or 3 * limit, retries)
    server = {"model_id": model_id, "api_key_env": api_key_env}
    return ServingOptions(
        engine, {k: v for k, v in server.items() if v is not None}, patience, ignore_guards, not no_preflight
    )
