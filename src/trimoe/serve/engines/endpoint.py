"""Any running OpenAI-compatible server, named by its address. Nothing is started and nothing is stopped."""

from dataclasses import replace

from trimoe.errors import UsageError
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan
from trimoe.serve.known import recall
from trimoe.serve.probe import connect
from trimoe.serve.process import Server
from trimoe.serve.requirements import Requirements
from trimoe.serve.target import Target


def attach(target: Target, options: Options) -> Endpoint:
    """The endpoint as the server reports it; of a server that `trimoe serve` started here, as that command knows it."""
    if options.extra:
        raise UsageError(
            f"{target.address} is already running, so it takes no flags",
            expected="a model to start a server for",
            actual=f"--flag {options.extra[0]}",
            remedy="start the server with the flag, or leave --flag out",
        )
    found = recall(target.address, options.model_id)
    if found is None:
        found = connect(target.address, model=options.model_id, api_key_env=options.api_key_env)
    extra = (options.answers_as,) if options.answers_as else ()
    return replace(found, also_named=(*found.also_named, *extra), api_key_env=options.api_key_env)


def plan(target: Target, needs: Requirements, options: Options) -> Plan:
    """There is no command."""
    raise UsageError(
        f"{target.address} is already running",
        expected="a model to start a server for",
        remedy="use the address itself",
    )


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """Nothing beyond what `attach` read."""
    return endpoint


ENGINE = Engine(
    name="endpoint",
    about="Any running OpenAI-compatible server, by its address; it is queried, never started or stopped.",
    kinds=("url",),
    flags={"everything": "set by whoever started it; the preflight reads what the server reports"},
    missing=lambda _options: None,
    plan=plan,
    read=read,
    attach=attach,
)
