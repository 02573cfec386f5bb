"""Any running OpenAI-compatible server, named by its address. Nothing is started and nothing is stopped."""

from trimoe.errors import UsageError
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan, Target
from trimoe.serve.probe import connect
from trimoe.serve.process import Server
from trimoe.serve.wanted import Wanted


def attach(target: Target, options: Options) -> Endpoint:
    """The endpoint as it says it is."""
    return connect(target.address, model=options.model_id, api_key_env=options.api_key_env)


def plan(target: Target, wanted: Wanted, options: Options) -> Plan:
    """There is no command."""
    raise UsageError(f"{target.address} is running already", remedy="there is nothing to start")


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """Nothing beyond what `attach` read."""
    return endpoint


ENGINE = Engine(
    name="endpoint",
    about="Any running OpenAI-compatible server, by its address; it is asked, never started or stopped.",
    kinds=("url",),
    flags={"all of it": "set by whoever started it; preflight reads what the server tells"},
    missing=lambda _options: None,
    plan=plan,
    read=read,
    attach=attach,
)
