"""`trimoe serve`: start a server with the flags a bench needs, or show the command."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

from trimoe.bench.catalog import find
from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import UsageError
from trimoe.serve import open_server, planned

ENGINES = ("transformers", "llamacpp", "vllm", "ollama")


@click.command("serve")
@click.argument("model")
@click.option(
    "--engine", type=click.Choice(ENGINES), help="Default: llamacpp for a .gguf file, transformers for a directory."
)
@click.option("--bench", metavar="NAME", help="Take thinking, budget, context, slots and cache type from this bench.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1; a taken port is refused. Default: a free one."
)
@click.option("--context", type=click.IntRange(min=256), metavar="TOKENS", help="Context of each slot.")
@click.option("--parallel", type=click.IntRange(min=1), metavar="SLOTS", help="Parallel requests.")
@click.option("--kv", metavar="TYPE", help="Type of the key-value cache: f16, q8_0, ...")
@click.option(
    "--thinking/--no-thinking",
    default=None,
    help="Whether the model may think before it answers. Default: as the bench says, else no.",
)
@click.option("--budget", type=click.IntRange(min=0), metavar="TOKENS", help="Token limit of thinking.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of llama.cpp. Default: half of the cores.")
@click.option("--device", help="Device for transformers: cpu, cuda:0, auto. Default: cpu.")
@click.option("--dtype", help="Type of the weights for transformers and vLLM.")
@click.option(
    "--llamacpp",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory with llama.cpp's programs.",
)
@click.option(
    "--flag",
    "extra",
    multiple=True,
    metavar="FLAG",
    help="Extra flag, passed to the engine unchanged; may be repeated. Not for ollama, which has none.",
)
@click.option(
    "--compare/--no-compare",
    default=None,
    help="Compare the server's replies with those recorded in the checkpoint (NVFP4). Default: yes.",
)
@click.option("--print", "show", is_flag=True, help="Print the command and start nothing.")
@json_option
def serve(model: str, engine: str | None, bench: str | None, show: bool, as_json: bool, **given: Any) -> None:
    """Serve MODEL over the OpenAI API with the flags a bench needs.

    MODEL is a checkpoint directory or a .gguf file. The server listens on 127.0.0.1 and ends with this command, even if
    the command is killed. --json prints one document when the server is ready.

    \b
    Examples:
      trimoe serve model.gguf --bench gsm8k-100
      trimoe serve MODEL --engine vllm --bench gpqa-diamond --print
      trimoe serve MODEL --port 8080 --context 8192
      trimoe serve model.gguf --flag=-ngl --flag=99
    """
    if "://" in model:
        raise UsageError(
            f"{model} is already running",
            expected="a checkpoint directory or a .gguf file",
            remedy="pass the address to `trimoe eval`",
        )
    chosen = find([bench])[0] if bench else None
    options = {name: value for name, value in given.items() if value is not None}
    if chosen is not None and chosen.protocol is None:
        options.setdefault("max_new_tokens", chosen.max_new_tokens)
    spec = chosen.protocol if chosen else None
    if show:
        _, _, plan, _ = planned(model, engine=engine, spec=spec, **options)
        assert plan is not None
        notes = [*plan.notes, *([f"every request must carry {json.dumps(dict(plan.body))}"] if plan.body else [])]
        emit(plan.as_json(), "\n".join([*(f"# {note}" for note in notes), *plan.lines]), as_json)
        return
    with open_server(model, engine=engine, spec=spec, **options) as endpoint:
        data = {
            "url": endpoint.url,
            "model": endpoint.model,
            "engine": endpoint.engine,
            "context": endpoint.context,
            "slots": endpoint.slots,
            "model_hash": endpoint.model_hash,
            "settings": dict(endpoint.settings),
            "operational": dict(endpoint.operational),
        }
        emit(data, _ready(data), as_json)
        sys.stdout.flush()
        signal.pause()  # ends by Ctrl-C or SIGTERM, which raise


def _ready(data: dict[str, Any]) -> str:
    context = f"{data['context']} tokens per slot" if data["context"] else "context unknown"
    return "\n".join(
        [
            f"{data['engine']} serves {data['model']} at {data['url']}",
            f"  {context}, {data['slots']} parallel; {json.dumps(data['settings'])}",
            *(f"  note: {note}" for note in data["operational"]["notes"]),
            f"  {data['operational']['compared']}",
            f"  log: {data['operational']['log']}",
            f"  try: trimoe eval {data['url']} --bench tiny-math --log runs.db   (Ctrl-C ends the server)",
        ]
    )


COMMANDS = [serve]
