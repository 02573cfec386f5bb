"""`trimoe eval`, `trimoe rescore`: generate and score, judge what is stored again."""

from pathlib import Path
from typing import Any

import click

from trimoe.bench.bench import SMOKE, Bench, rows_sha256
from trimoe.bench.catalog import SUITES, find
from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.cli.parts.live import live
from trimoe.cli.parts.lm_eval import lm_eval_options, run_tasks
from trimoe.cli.parts.sandbox import policy_of, sandbox_options
from trimoe.cli.parts.server import options_of, serving_options
from trimoe.errors import TrimoeError, UsageError
from trimoe.evaluate.run import RunSummary, evaluate, rescore
from trimoe.evaluate.served import evaluate_served

CHARS_PER_TOKEN = 4  # a rule of thumb for English; the plan is made without a tokenizer


@click.command("eval")
@click.argument("model")
@click.option("--bench", "names", help="Benches, with commas between: names, or TOML files of your own.")
@click.option("--suite", type=click.Choice(sorted(SUITES)), help="A named set of benches, instead of --bench.")
@click.option(
    "--log",
    "log_path",
    metavar="RUNS.db",
    type=click.Path(path_type=Path),
    help="Run log to write or continue (SQLite). Not needed for --dry-run.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows of each bench.")
@click.option("--name", help="Label of the model in tables (default: its folder's name).")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of local dataset files, for benches that need one (the tiny benches generate theirs).",
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
    help="Give a score although rows could not be scored, without them. Shown with the score.",
)
@click.option("--smoke", is_flag=True, help="A few rows of each bench (NAME:smoke), to see that everything works.")
@click.option(
    "--dry-run", is_flag=True, help="Print the first prompts and estimated tokens; nothing is loaded or written."
)
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

    The same command goes on where it was stopped. MODEL is a checkpoint directory (run in this process unless --engine
    says which server runs it), a .gguf file, or the address of a server that speaks the OpenAI protocol.

    Rows that failed (a harness error) are asked for again; a run has no score until none is left. Exit 1 when some are,
    5 when a guard paused a run or the server changed under it.

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
    if tasks is not None:
        if names or suite or smoke or dry_run or log_path is None:
            raise UsageError("--lm-eval stands alone", expected="--log, and no --bench, --suite, --smoke or --dry-run")
        return run_tasks(
            model,
            tasks,
            log_path,
            options_of(**serving),
            include=include,
            limit=limit,
            name=name,
            exclude_errors=exclude_errors,
            as_json=as_json,
        )
    wanted = _wanted(names, suite, smoke)
    policy = policy_of(sandbox, sandbox_image, unsafe_no_sandbox)
    if dry_run:
        plans = [_plan(bench, limit, data) for bench in wanted]
        emit({"model": model, "benches": plans}, "\n\n".join(map(_plan_text, plans)), as_json)
        return max(plan["error"]["exit_code"] if plan["error"] else 0 for plan in plans)
    if log_path is None:
        raise UsageError("no run log named", expected="--log RUNS.db", remedy="add --log, or --dry-run to look only")
    options = options_of(**serving)
    if options.served(model):
        with live() as show:
            results = evaluate_served(
                model,
                wanted,
                log_path,
                engine=options.engine,
                options=options.server,
                limit=limit,
                name=name,
                data=data,
                sandbox=policy,
                exclude_errors=exclude_errors,
                ignore_guards=options.ignore_guards,
                preflight=options.preflight,
                patience=options.patience,
                show=show,
            )
    else:
        with progress("eval") as report:
            results = evaluate(
                model,
                wanted,
                log_path,
                limit=limit,
                name=name,
                progress=report,
                batch_size=batch_size,
                device=device,
                data=data,
                sandbox=policy,
                ignore_guards=options.ignore_guards,
                exclude_errors=exclude_errors,
            )
    emit({"log": str(log_path), "runs": [r.as_dict() for r in results]}, _results(results), as_json)
    return 1 if any(r.errors for r in results) and not exclude_errors else 0


def _wanted(names: str | None, suite: str | None, smoke: bool) -> list[Bench]:
    if (names is None) == (suite is None):
        raise UsageError(
            "which benches?", expected="--bench or --suite, one of them", actual="both" if names else "neither"
        )
    wanted = list(SUITES[suite]) if suite else [part.strip() for part in (names or "").split(",") if part.strip()]
    return find([name if not smoke or SMOKE in name.split(":") else f"{name}:{SMOKE}" for name in wanted])


def _plan(bench: Bench, limit: int | None, data: Path | None) -> dict[str, Any]:
    """What a run would ask. A bench whose data cannot be had is named with the error, the others are still shown."""
    try:
        everything = bench.docs(data)
        error = None
    except TrimoeError as exc:
        everything, error = [], exc.as_dict()
    docs = everything[:limit]
    try:
        bench.require_statements(docs)
        note = ""
    except TrimoeError as exc:
        note = f"a run is refused: {exc.subject}"
    chars = sum(len(turn["content"]) for doc in docs for turn in doc.chat())
    return {
        "bench": bench.name,
        "rows": len(docs),
        "dataset_sha256": rows_sha256(everything) if everything else None,
        "max_new_tokens": bench.max_new_tokens,
        "stops": list(bench.stops),
        "prompt_tokens_estimate": chars // CHARS_PER_TOKEN,
        "most_reply_tokens": len(docs) * bench.max_new_tokens,
        "first_prompts": [doc.prompt for doc in docs[:2]],
        "first_chat": docs[0].chat() if docs else [],
        "history_turns": len(docs[0].history) if docs else 0,
        "note": note,
        "error": error,
    }


def _plan_text(plan: dict[str, Any]) -> str:
    if plan["error"]:
        return f"{plan['bench']}: {plan['error']['subject']}\n  remedy: {plan['error']['remedy']}"
    head = (
        f"{plan['bench']}: {plan['rows']} rows, about {plan['prompt_tokens_estimate']:,} tokens of prompts, replies of "
        f"at most {plan['max_new_tokens']} tokens ({plan['most_reply_tokens']:,} in all)"
    )
    if plan["history_turns"]:
        head += f", {plan['history_turns']} turns of examples before each"
    head += f"\n  content of all rows: sha256 {plan['dataset_sha256']}"
    prompts = ("  " + prompt.replace("\n", "\n  ") for prompt in plan["first_prompts"])
    return "\n".join([head, *([plan["note"]] if plan["note"] else []), *prompts])


def _results(results: list[RunSummary]) -> str:
    from trimoe.judge.statistics.paired import wilson

    lines = []
    for r in results:
        low, high = wilson(r.correct, r.n - r.unscored)
        score = (
            "no score" if r.score is None else f"{100 * r.score:5.1f} %  (95 %: {100 * low:.1f} to {100 * high:.1f})"
        )
        misses = ", ".join(f"{count} {cause}" for cause, count in r.causes.items() if cause != "correct")
        if r.parts:
            score += "  " + ", ".join(f"{k} {'-' if v is None else f'{100 * v:.1f}'}" for k, v in r.parts.items())
        limits = "limits not counted" if r.ceilings is None else r.ceilings["verdict"]
        lines.append(f"{r.bench:<12} {r.correct:>4}/{r.n - r.unscored:<4} {score}  {limits}  {misses}".rstrip())
        if r.score is None and r.unscored:
            lines.append(f"  {r.unscored} rows are not scored: the same command tries them again")
        if r.ceilings and r.ceilings["verdict"] == "CAPPED":
            c = r.ceilings
            lines.append(
                f"  CAPPED at {c['hit']}: {c['capped']} replies, at most {c['tax_pp']:.1f} points of the score"
            )
        lines += [f"  ! {mark}" for mark in r.marks]
    return "\n".join(lines)


@click.command("rescore")
@click.argument("db", metavar="RUNS.db", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="As for eval.")
@click.option(
    "--bench", "files", metavar="FILE.toml", multiple=True, help="A bench of your own that the log has runs of."
)
@sandbox_options
@json_option
def rescore_(
    db: Path,
    data: Path | None,
    files: tuple[str, ...],
    sandbox: str | None,
    sandbox_image: str | None,
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """Score stored replies again without generating.

    \b
    Examples:
      trimoe rescore runs.db
      trimoe rescore runs.db --bench tickets.toml
    """
    results = rescore(db, data, policy_of(sandbox, sandbox_image, unsafe_no_sandbox), files)
    emit({"log": str(db), "runs": [r.as_dict() for r in results]}, _results(results), as_json)


COMMANDS: list[click.Command] = [eval_, rescore_]
