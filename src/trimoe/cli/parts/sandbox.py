"""Options of every verb that runs generated code, and the sandbox policy they set."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from trimoe.sandbox.engines import ENGINES, IMAGE, Policy

F = TypeVar("F", bound=Callable[..., Any])


def sandbox_options(command: F) -> F:
    """Adds --sandbox, --sandbox-image and --unsafe-no-sandbox; the command passes them on to `policy_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--sandbox",
        type=click.Choice([engine for engine in ENGINES if engine != "none"]),
        help="Sandbox for generated code (default: namespaces, which needs no installation).",
    ),
    click.option("--sandbox-image", metavar="IMAGE", help=f"Image for docker or podman (default: {IMAGE})."),
    click.option(
        "--unsafe-no-sandbox",
        is_flag=True,
        help="Run generated code without a sandbox: it can read and delete whatever you can. Recorded with the run.",
    ),
)


def policy_of(sandbox: str | None, sandbox_image: str | None, unsafe_no_sandbox: bool) -> Policy:
    """The policy that the options set. `UsageError` if they contradict each other."""
    engine: Any = sandbox or ("none" if unsafe_no_sandbox else "namespaces")
    return Policy(engine, sandbox_image or IMAGE, unsafe=unsafe_no_sandbox)
