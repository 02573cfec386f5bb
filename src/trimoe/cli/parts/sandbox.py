"""The options of every verb that runs generated code, and the policy they mean."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from trimoe.sandbox.engines import ENGINES, IMAGE, Policy

F = TypeVar("F", bound=Callable[..., Any])


def sandbox_options(command: F) -> F:
    """Adds --sandbox, --sandbox-image and --unsafe-no-sandbox; the command receives what `policy_of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--sandbox",
        type=click.Choice([engine for engine in ENGINES if engine != "none"]),
        help="What contains generated code (default: namespaces, which needs nothing installed).",
    ),
    click.option("--sandbox-image", metavar="IMAGE", help=f"Image for docker or podman (default: {IMAGE})."),
    click.option(
        "--unsafe-no-sandbox",
        is_flag=True,
        help="Run generated code without containing it: it may read and delete whatever you may. Recorded in the run.",
    ),
)


def policy_of(sandbox: str | None, sandbox_image: str | None, unsafe_no_sandbox: bool) -> Policy:
    """The policy of the options; `UsageError` when they contradict each other."""
    engine: Any = sandbox or ("none" if unsafe_no_sandbox else "namespaces")
    return Policy(engine, sandbox_image or IMAGE, unsafe=unsafe_no_sandbox)
