"""The part of `trimoe eval` that runs tasks of lm-eval on a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from trimoe.cli.parts.common import emit, require_extra
from trimoe.cli.parts.live import live
from trimoe.cli.parts.server import ServingOptions

F = TypeVar("F", bound=Callable[..., Any])


def lm_eval_options(command: F) -> F:
    """Adds `--lm-eval` and `--lm-eval-include`."""
    tasks = click.option(
        "--lm-eval",
        "tasks",
        metavar="TASKS",
        help="Generation tasks of lm-eval instead of --bench, separated by commas. Scored by lm-eval.",
    )
    folder = click.option(
        "--lm-eval-include",
        "include",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Folder with your own task files (YAML) for --lm-eval.",
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
    """Evaluate the tasks and print lm-eval's metrics."""
    require_extra("eval", "tasks of lm-eval")
    from trimoe.evaluate.lm_eval_tasks import evaluate_lm_eval

    with live() as show:
        results = evaluate_lm_eval(
            model,
            tasks,
            log_path,
            engine=options.engine,
            server=options.server,
            limit=limit,
            name=name,
            include=include,
            request_limits=options.request_limits,
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
