"""ollama, for GGUF files: a separate `ollama serve` with its own port and model store, never the user's.

Invariants: the model is created from the file alone, and the loaded model is compared with it; the context is set for
the whole server (ollama truncates a longer prompt silently, so the preflight compares it). Not guaranteed: a thinking
budget; ollama has none. The file is copied into the store, which needs its size again until the store is removed.
"""

import shutil

from trimoe.errors import UsageError
from trimoe.llamacpp.tools import cache_folder
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan
from trimoe.serve.process import HOST, Server, free_port
from trimoe.serve.requirements import Requirements
from trimoe.serve.start import must_serve, with_facts
from trimoe.serve.target import Target


def missing(options: Options) -> str | None:
    """Why ollama cannot run here."""
    return None if shutil.which("ollama") else "the program ollama is not on PATH (https://ollama.com/download)"


def plan(target: Target, needs: Requirements, options: Options) -> Plan:
    """`ollama serve` with its settings in the environment, then `ollama create`."""
    assert target.path is not None
    if options.extra:
        raise UsageError(
            f"ollama takes no flag {options.extra[0]}",
            expected="no --flag: `ollama serve` reads its settings only from the environment",
            actual=" ".join(options.extra),
            remedy="set them with --context, --parallel and --kv, or use --engine llamacpp",
        )
    port, program = options.port or free_port(), shutil.which("ollama") or "ollama"
    store = cache_folder().parent / "ollama"
    name = model_name(target.name)
    recipe = str(store / f"{name.partition(':')[0]}.Modelfile")
    notes = [] if needs.budget is None else [f"ollama has no thinking budget ({needs.budget} was requested)"]
    environment = {
        "OLLAMA_HOST": f"{HOST}:{port}",
        "OLLAMA_MODELS": str(store),
        "OLLAMA_CONTEXT_LENGTH": str(needs.context),
        "OLLAMA_NUM_PARALLEL": str(needs.parallel),
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
    }
    if needs.kv in ("q8_0", "q4_0"):
        environment |= {"OLLAMA_FLASH_ATTENTION": "1", "OLLAMA_KV_CACHE_TYPE": needs.kv}
    return Plan(
        "ollama",
        (program, "serve"),
        port,
        name,
        "/api/version",
        needs.context,
        needs.parallel,
        environment=environment,
        settings={
            "kv": needs.kv if "OLLAMA_KV_CACHE_TYPE" in environment else "f16",
            "thinking": "on" if needs.thinking else "off",
            "think_budget": None,
        },
        body={} if needs.thinking else {"reasoning_effort": "none"},
        notes=tuple(notes),
        prepare=((program, "create", name, "-f", recipe),),
        # only the weights: template and stops come from the file, the sampler from the bench
        files={recipe: f"FROM {target.path}\n"},
    )


def model_name(name: str) -> str:
    """A valid name for ollama: lower-case letters, digits, dots, dashes and underscores, one tag."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower()) + ":trimoe"


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """/api/ps names the loaded model with its context, /api/version the build."""
    return from_pages(endpoint, server.get("/api/ps"), server.get("/api/version"))


def from_pages(endpoint: Endpoint, loaded: dict[str, object], version: dict[str, object]) -> Endpoint:
    """The endpoint with the facts of the two pages; the context is None if this version does not report it."""
    rows = loaded.get("models")
    models = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    row = next((row for row in models if row.get("name") == endpoint.model), {})
    must_serve("model", endpoint.model, row.get("name"))
    context = row.get("context_length")
    return with_facts(
        endpoint,
        context=context if isinstance(context, int) else None,
        settings={"build": version.get("version"), "digest": row.get("digest")},
    )


ENGINE = Engine(
    name="ollama",
    about="ollama, for GGUF files: a separate server and model store, beside any other ollama.",
    kinds=("gguf",),
    flags={
        "context": "OLLAMA_CONTEXT_LENGTH (per slot)",
        "slots": "OLLAMA_NUM_PARALLEL",
        "key-value cache": "OLLAMA_KV_CACHE_TYPE with OLLAMA_FLASH_ATTENTION",
        "thinking off": "reasoning_effort: none in every request",
        "thinking on": "none: the model's default",
        "thinking budget": "none",
        "--flag": "refused: `ollama serve` has no flags",
    },
    missing=missing,
    plan=plan,
    read=read,
)
