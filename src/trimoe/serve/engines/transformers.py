"""`transformers serve`, the default engine for checkpoint directories; runs on CPU. Needs the extra 'serve'.

Invariants: requests are answered one at a time (without continuous batching, whose kernels need a GPU). On a CPU the
weights are fp32, as in evaluation inside the process. Not guaranteed: special tokens in a reply, which it leaves out of
the text; log-probabilities, which it ignores; a thinking budget, which it lacks.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.floats import quant_beside
from trimoe.model.quant import all_quants
from trimoe.serve.endpoint import Endpoint
from trimoe.serve.engine import Engine, Options, Plan, log_folder
from trimoe.serve.process import HOST, Server, free_port
from trimoe.serve.requirements import Requirements
from trimoe.serve.start import with_facts
from trimoe.serve.target import Target

PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "openai")


def missing(options: Options) -> str | None:
    """Why `transformers serve` cannot run here."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}; pip install torch==2.13.0 && pip install 'trimoe[serve]'"
    return None if _program() else "the program `transformers` is neither beside this Python nor on PATH"


def _program() -> str | None:
    return shutil.which("transformers", path=str(Path(sys.executable).parent)) or shutil.which("transformers")


def require_runnable(folder: Path) -> None:
    """`CheckpointError` for quantized weights that transformers is not known to run as the checkpoint holds them.

    It starts all the same: version 5.23 leaves NVFP4 experts of Gemma 4 at random, and ignores the scale of Qwen3's.
    """
    quant, method = quant_beside(folder)
    if method is None or (quant is not None and quant.runs):
        return
    raise CheckpointError(
        f"{folder} is quantized, and the engine transformers is not known to run it as stored",
        expected="unquantized weights or " + " or ".join(one.name for one in all_quants() if one.runs),
        actual=f"{method}; NVFP4 experts were served with random values or without their scales, and no error",
        remedy="use --engine vllm, evaluate it in this process (trimoe eval MODEL, which decodes NVFP4), or serve the "
        "unquantized checkpoint",
    )


def plan(target: Target, needs: Requirements, options: Options) -> Plan:
    """The command line of `transformers serve`."""
    assert target.path is not None
    require_runnable(target.path)
    port, device = options.port or free_port(), options.device or "cpu"
    dtype = options.dtype or ("float32" if device == "cpu" else "auto")
    switch = target.serving.thinking if target.serving else None
    reasoning = ["--reasoning", "on" if needs.thinking else "off"] if switch else []
    notes = [] if needs.budget is None else [f"transformers has no thinking budget ({needs.budget} was requested)"]
    # /v1/models lists the hub's cache and fails without one, so it gets an empty one
    hub = log_folder() / "no-hub"
    command = [
        _program() or "transformers",
        "serve",
        str(target.path),
        "--host",
        HOST,
        "--port",
        str(port),
        "--device",
        device,
        "--dtype",
        dtype,
        *reasoning,
        "--log-level",
        "warning",
        *options.extra,
    ]
    config = read_json(target.path / "config.json", "the model's config")
    context = (config.get("text_config") or config).get("max_position_embeddings")
    return Plan(
        "transformers",
        tuple(command),
        port,
        str(target.path),
        "/health",
        context if isinstance(context, int) else None,
        1,
        environment={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)},
        files={str(hub / "README"): "Empty on purpose: the cache of a server that serves one directory.\n"},
        settings={
            "dtype": dtype,
            "device": device.partition(":")[0],
            "thinking": ("on" if needs.thinking else "off") if switch else None,
            "think_budget": None,
            "flags": list(options.extra),
        },
        notes=tuple(notes),
    )


def read(server: Server, plan: Plan, endpoint: Endpoint) -> Endpoint:
    """It reports no settings; its version is the installed one, because it runs from this environment."""
    from importlib.metadata import version

    return with_facts(endpoint, settings={"build": version("transformers"), "torch": version("torch")})


ENGINE = Engine(
    name="transformers",
    about="transformers serve; the default for checkpoint directories, on CPU or GPU.",
    kinds=("checkpoint",),
    flags={
        "context": "none: the model's max_position_embeddings",
        "slots": "none: one request at a time",
        "key-value cache": "none: the type of the weights",
        "thinking off": "--reasoning off",
        "thinking on": "--reasoning on",
        "thinking budget": "none",
        "type of the weights": "--dtype float32 on a CPU, else auto",
    },
    missing=missing,
    plan=plan,
    read=read,
)
