"""vLLM, for checkpoint directories on a GPU.

Invariants: --max-model-len is the context of every request, so no slot arithmetic is needed; the generation config of
the model is not taken as a default (--generation-config vllm), because it would sample where the bench is greedy. Not
guaranteed: a thinking budget on versions that know no `thinking_token_budget`; preflight says "unverified".
"""

import importlib.util
import json
import shutil

from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan, Target, must_serve, with_facts
from trimoe.serve.process import HOST, Server, free_port
from trimoe.serve.wanted import PROMPT_ROOM, Wanted, template_arguments


def missing(options: Options) -> str | None:
    """Why vLLM cannot run here."""
    if shutil.which("vllm") is None and importlib.util.find_spec("vllm") is None:
        return "vllm is not installed (pip install vllm, in an environment of its own: it pins other versions of torch)"
    return (
        None
        if shutil.which("nvidia-smi") or shutil.which("rocm-smi")
        else "no GPU was found (no nvidia-smi, no rocm-smi)"
    )


def plan(target: Target, wanted: Wanted, options: Options) -> Plan:
    """The command line of `vllm serve`."""
    port = options.port or free_port()
    serving, arguments = target.serving, template_arguments(target.serving, wanted)
    parser = serving.vllm_parser if serving and wanted.thinking and wanted.reasoning_parser else None
    notes = []
    if wanted.thinking and wanted.reasoning_parser and parser is None:
        notes.append("no reasoning parser is known for this model: its thoughts stay in the content")
    if serving and serving.note:
        notes.append(f"{serving.name}: {serving.note}")
    cache = {None: [], "f16": [], "q8_0": ["--kv-cache-dtype", "fp8"]}.get(wanted.kv, [])
    body: dict[str, object] = {"chat_template_kwargs": arguments} if arguments else {}
    reasoning = ["--reasoning-parser", parser] if parser else []
    if parser and wanted.budget is not None and serving and serving.opens:
        config = {"reasoning_start_str": serving.opens, "reasoning_end_str": serving.closes}
        reasoning += ["--reasoning-config", json.dumps(config)]
        body["thinking_token_budget"] = wanted.budget
    context = wanted.context + PROMPT_ROOM if wanted.context == wanted.required_context else wanted.context
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
        str(wanted.parallel),
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
        wanted.parallel,
        settings={
            "kv": "fp8" if cache else "auto",
            "thinking": "on" if wanted.thinking else "off",
            "think_budget": body.get("thinking_token_budget"),
            "reasoning_parser": parser,
            "dtype": options.dtype or "auto",
            "flags": list(options.extra),
        },
        body=body,
        notes=tuple(notes),
    )


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """/v1/models names the path served (`root`) and the context; /version the build."""
    card = model_card(server.get("/v1/models"), plan.model_id)
    must_serve("model", plan.command[2], card.get("root"))
    return with_facts(
        endpoint, context=card.get("max_model_len"), settings={"build": server.get("/version").get("version")}
    )


def model_card(listed: dict[str, object], model_id: str) -> dict[str, object]:
    """The entry of /v1/models for this name; empty if there is none."""
    rows = listed.get("data")
    found = (
        [row for row in rows if isinstance(row, dict) and row.get("id") == model_id] if isinstance(rows, list) else []
    )
    return found[0] if found else {}


ENGINE = Engine(
    name="vllm",
    about="vLLM, for checkpoint directories (also NVFP4) on a GPU.",
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
