"""The part of `trimoe eval` that runs tasks of lm-eval on a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trimoe.cli.parts.common import emit, require_extra
from trimoe.cli.parts.live import live
from trimoe.cli.parts.server import ServingOptions
from trimoe.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def lm_eval_options(command: F) -> F:
    """Adds `--lm-eval` and `--lm-eval-include`."""
    tasks = click.option(
        "--lm-eval",
        "tasks",
        metavar="TASKS",
        help="Generation tasks of lm-eval instead of --bench, with commas between; asked by trimoe, scored by lm-eval.",
    )
    folder = click.option(
        "--lm-eval-include",
        "include",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Folder with task files (YAML) of your own for --lm-eval.",
    )
    return tasks(folder(command))


def run_tasks(
    model: str,
    tasks: str,
    log_path: Path,
    options: ServingOptions,
    *,
    include: Path | None,
    limit: int | None,
    name: str | None,
    exclude_errors: bool,
    as_json: bool,
) -> int:
    """Run the tasks on a server that is running or started for it, and print lm-eval's own numbers."""
    require_extra("eval", "tasks of lm-eval")
    if not options.served(model):
        raise UsageError(
            "tasks of lm-eval are asked over HTTP",
            expected="an address, a .gguf file, or --engine with a checkpoint",
            actual=model,
            remedy="add --engine transformers",
        )
    from trimoe.evaluate.lm_eval_bridge import evaluate_lm_eval
    from trimoe.serve import open_server

    chosen = [part.strip() for part in tasks.split(",") if part.strip()]
    label = name or (Path(model).stem if "://" not in model else None)
    with open_server(model, engine=options.engine, **options.server) as endpoint, live() as show:
        results = evaluate_lm_eval(
            endpoint,
            chosen,
            log_path,
            limit=limit,
            name=label,
            include=include,
            patience=options.patience,
            ignore_guards=options.ignore_guards,
            exclude_errors=exclude_errors,
            preflight=options.preflight,
            show=show,
        )
    lines = []
    for result in results:
        lines.append(f"{result.task}: {result.summary.n} rows, {result.summary.correct} correct")
        lines += [f"  {key} {value}" for key, value in result.metrics.items() if "_stderr" not in key]
    emit({"log": str(log_path), "runs": [result.as_dict() for result in results]}, "\n".join(lines), as_json)
    return 0
