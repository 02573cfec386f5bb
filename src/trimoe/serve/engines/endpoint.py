"""Any running OpenAI-compatible server, named by its address. Nothing is started and nothing is stopped."""

from trimoe.errors import UsageError
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan
from trimoe.serve.probe import connect
from trimoe.serve.process import Server
from trimoe.serve.requirements import Requirements
from trimoe.serve.target import Target


def attach(target: Target, options: Options) -> Endpoint:
    """The endpoint as the server reports it."""
    return connect(target.address, model=options.model_id, api_key_env=options.api_key_env)


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
