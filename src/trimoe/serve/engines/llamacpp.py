"""llama-server, the default engine for GGUF files, from the llama.cpp that `trimoe llamacpp where` names.

Invariants: context is per slot and multiplied for the command, because llama-server divides -c among its slots.
--reasoning switches thinking, not a budget of 0, which llama-server ignores. The prompt cache is off: with it, a reply
can depend on earlier requests.
"""

from trimoe.errors import TrimoeError
from trimoe.llamacpp.tools import locate
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan
from trimoe.serve.process import HOST, Server, free_port
from trimoe.serve.requirements import Requirements
from trimoe.serve.start import must_serve, with_facts
from trimoe.serve.target import Target
from trimoe.serve.threads import default_threads


def missing(options: Options) -> str | None:
    """Why llama-server cannot run here."""
    try:
        locate(options.directory).program("llama-server")
    except TrimoeError as exc:
        return f"{exc.subject}: {exc.remedy}"
    return None


def plan(target: Target, needs: Requirements, options: Options) -> Plan:
    """The command line of llama-server."""
    try:
        program = str(locate(options.directory).program("llama-server"))
    except TrimoeError:
        program = "llama-server"  # the command can be shown where it cannot run
    port = options.port or free_port()
    threads = options.threads or default_threads()
    reasoning = (
        [
            "--reasoning",
            "on",
            "--reasoning-format",
            "deepseek",
            "--reasoning-budget",
            str(-1 if needs.budget is None else needs.budget),
        ]
        if needs.thinking
        else ["--reasoning", "off"]
    )
    cache = ["--cache-type-k", needs.kv, "--cache-type-v", needs.kv] if needs.kv else []
    command = [
        program,
        "-m",
        str(target.path),
        "--alias",
        target.name,
        "--host",
        HOST,
        "--port",
        str(port),
        "-c",
        str(needs.context * needs.parallel),
        "--parallel",
        str(needs.parallel),
        "-t",
        str(threads),
        "--jinja",
        *reasoning,
        *cache,
        "--no-ui",
        *options.extra,
    ]
    return Plan(
        "llamacpp",
        tuple(command),
        port,
        target.name,
        "/health",
        needs.context,
        needs.parallel,
        # spinning threads starve each other where there are few cores
        environment={"OMP_WAIT_POLICY": "passive"},
        settings={
            "kv": needs.kv or "f16",
            "thinking": "on" if needs.thinking else "off",
            "think_budget": needs.budget,
            "reasoning_format": "deepseek" if needs.thinking else None,
            "flags": list(options.extra),
        },
        body={"cache_prompt": False},
        operational={"threads": threads},
    )


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """Facts of /props: file, context per slot, slots, build."""
    props = server.get("/props")
    path = plan.command[plan.command.index("-m") + 1]
    must_serve("file", path, props.get("model_path"))
    return with_facts(
        endpoint,
        context=props["default_generation_settings"]["n_ctx"],
        slots=props["total_slots"],
        settings={"build": props.get("build_info")},
    )


ENGINE = Engine(
    name="llamacpp",
    about="llama.cpp's llama-server; the default for GGUF files.",
    kinds=("gguf",),
    flags={
        "context": "-c (context per slot x slots)",
        "slots": "--parallel",
        "key-value cache": "--cache-type-k, --cache-type-v",
        "thinking off": "--reasoning off",
        "thinking on": "--reasoning on --reasoning-format deepseek",
        "thinking budget": "--reasoning-budget",
        "chat template": "--jinja (the file's own)",
        "every request": "cache_prompt: false",
    },
    missing=missing,
    plan=plan,
    read=read,
)
