"""`trimoe eval`: evaluate a checkpoint or a server on benches."""

from pathlib import Path
from typing import Any

import click

from trimoe.bench.catalog import SUITES
from trimoe.cli.parts.common import emit, json_option
from trimoe.cli.parts.live import live, plain
from trimoe.cli.parts.lm_eval import lm_eval_options, run_tasks
from trimoe.cli.parts.sandbox import policy_of, sandbox_options
from trimoe.cli.parts.scores import scores_text
from trimoe.cli.parts.server import options_of, serving_options
from trimoe.errors import UsageError
from trimoe.evaluate.dry_run import BenchPlan, plan_evaluation
from trimoe.evaluate.evaluate import evaluate


@click.command("eval")
@click.argument("model")
@click.option("--bench", "names", help="Benches, separated by commas: names, or TOML files of your own.")
@click.option("--suite", type=click.Choice(sorted(SUITES)), help="A named set of benches, instead of --bench.")
@click.option(
    "--log",
    "log_path",
    metavar="RUNS.db",
    type=click.Path(path_type=Path),
    help="Run log to write or continue (SQLite). Not needed for --dry-run.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of each bench.")
@click.option("--name", help="Label of the model in tables (default: the folder's name).")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with local data sets, for benches that need one (the tiny benches generate theirs).",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Replies generated at once, for a checkpoint in this process.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for a checkpoint in this process.")
@lm_eval_options
@serving_options
@click.option(
    "--exclude-errors",
    is_flag=True,
    help="Give a score without the rows that could not be scored. Shown with the score.",
)
@click.option("--smoke", is_flag=True, help="Only a few rows of each bench (NAME:smoke), to test the setup.")
@click.option("--dry-run", is_flag=True, help="Print the first prompts and estimated tokens; load and write nothing.")
@sandbox_options
@json_option
def eval_(
    model: str,
    names: str | None,
    suite: str | None,
    log_path: Path | None,
    limit: int | None,
    name: str | None,
    data: Path | None,
    batch_size: int,
    device: str,
    smoke: bool,
    dry_run: bool,
    exclude_errors: bool,
    sandbox: str | None,
    sandbox_image: str | None,
    unsafe_no_sandbox: bool,
    tasks: str | None,
    include: Path | None,
    as_json: bool,
    **serving: Any,
) -> int:
    """Evaluate a checkpoint or a running server on benches.

    The same command resumes an interrupted run. MODEL is a checkpoint directory (evaluated in this process unless
    --engine names a server to start), a .gguf file, or the address of a server with the OpenAI protocol.

    Rows that failed (a harness error) are requested again; a run has no score until none is left. Exit code 1 if some
    are left, 5 if a guard paused a run or the server changed during it.

    \b
    Examples:
      trimoe eval MODEL --suite tiny --log runs.db
      trimoe eval MODEL --bench tiny-code,tiny-math --log runs.db --name reap --limit 50
      trimoe eval MODEL --bench gsm8k-100:smoke,humaneval --data DIR --dry-run
      trimoe eval model.gguf --bench gsm8k-100 --log runs.db
      trimoe eval model.gguf --bench tickets.toml --log runs.db
      trimoe eval MODEL --engine transformers --bench tiny-math --log runs.db
      trimoe eval http://127.0.0.1:8080 --suite nine --log runs.db --concurrency 4
      trimoe eval http://127.0.0.1:8080 --lm-eval gsm8k_cot --log runs.db
    """
    options = options_of(**serving)
    if tasks is not None:
        if names or suite or smoke or dry_run or log_path is None:
            raise UsageError(
                "--lm-eval does not fit the other options",
                expected="--log, and no --bench, --suite, --smoke or --dry-run",
                remedy="run the benches with a second command",
            )
        return run_tasks(
            model,
            tasks,
            log_path,
            options,
            include=include,
            limit=limit,
            name=name,
            exclude_errors=exclude_errors,
            as_json=as_json,
        )
    policy = policy_of(sandbox, sandbox_image, unsafe_no_sandbox)
    if dry_run:
        plans = plan_evaluation(bench=names, suite=suite, smoke=smoke, limit=limit, data=data)
        found = [plan.as_dict() for plan in plans]
        emit({"model": model, "benches": found}, "\n\n".join(map(_plan_text, plans)), as_json)
        return max(plan.error["exit_code"] if plan.error else 0 for plan in plans)
    if log_path is None:
        raise UsageError("no run log named", expected="--log RUNS.db", remedy="add --log, or --dry-run to look only")
    with live() as show, plain("eval") as progress:
        done = evaluate(
            model,
            bench=names,
            suite=suite,
            smoke=smoke,
            log=log_path,
            name=name,
            engine=options.engine,
            limit=limit,
            data=data,
            batch_size=batch_size,
            device=device,
            server=options.server,
            request_limits=options.request_limits,
            preflight=options.preflight,
            sandbox=policy,
            ignore_guards=options.ignore_guards,
            exclude_errors=exclude_errors,
            show=show,
            progress=progress,
        )
    emit(done.as_dict(), scores_text(done.runs), as_json)
    return 1 if any(run.errors for run in done.runs) and not exclude_errors else 0


def _plan_text(plan: BenchPlan) -> str:
    if plan.error:
        rows = [f"  {key}: {plan.error[key]}" for key in ("actual", "remedy") if plan.error.get(key)]
        return "\n".join([f"{plan.bench}: {plan.error['subject']}", *rows])
    head = (
        f"{plan.bench}: {plan.rows} rows, about {plan.prompt_tokens_estimate:,} tokens of prompts, replies of "
        f"at most {plan.max_new_tokens} tokens ({plan.most_reply_tokens:,} in all)"
    )
    if plan.history_turns:
        head += f", {plan.history_turns} turns of examples before each"
    head += f"\n  content of all rows: sha256 {plan.dataset_sha256}"
    prompts = ("  " + prompt.replace("\n", "\n  ") for prompt in plan.first_prompts)
    return "\n".join([head, *([plan.note] if plan.note else []), *prompts])


COMMANDS: list[click.Command] = [eval_]
