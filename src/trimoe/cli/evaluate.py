"""`trimoe eval`, `trimoe log`, `trimoe rescore`: generate and score, look at what is stored, judge it again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from trimoe.cli.common import emit, json_option, progress
from trimoe.cli.sandboxed import policy_of, sandbox_options
from trimoe.errors import UsageError
from trimoe.evaluate.bench import SUITES, find
from trimoe.evaluate.log import RunLog
from trimoe.evaluate.run import RunSummary, evaluate, rescore


@click.command("eval")
@click.argument("model")
@click.option("--bench", "names", help="Benches, with commas between.")
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
    "--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Replies generated at once."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--dry-run", is_flag=True, help="Print the first prompts and stop; nothing is loaded or written.")
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
    dry_run: bool,
    sandbox: str | None,
    sandbox_image: str | None,
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """Evaluate a checkpoint on benches; every sample is stored as it is made, and the same command continues.

    \b
    Examples:
      trimoe eval MODEL --suite tiny --log runs.db
      trimoe eval MODEL --bench tiny-code,tiny-math --log runs.db --name reap --limit 50
      trimoe eval MODEL --bench tiny-code --dry-run
    """
    wanted = _wanted(names, suite)
    policy = policy_of(sandbox, sandbox_image, unsafe_no_sandbox)
    if "://" in model:
        raise UsageError(
            "a running server cannot be evaluated yet",
            expected="a checkpoint directory",
            actual=model,
            remedy="pass the directory the server was started from",
        )
    if dry_run:
        plan = [_plan(bench_name, limit, data) for bench_name in wanted]
        emit({"model": model, "benches": plan}, "\n\n".join(map(_plan_text, plan)), as_json)
        return
    if log_path is None:
        raise UsageError("no run log named", expected="--log RUNS.db", remedy="add --log, or --dry-run to look only")
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
        )
    emit({"log": str(log_path), "runs": [r.as_dict() for r in results]}, _results(results), as_json)


def _wanted(names: str | None, suite: str | None) -> list[str]:
    if (names is None) == (suite is None):
        raise UsageError(
            "which benches?", expected="--bench or --suite, one of them", actual="both" if names else "neither"
        )
    wanted = list(SUITES[suite]) if suite else [part.strip() for part in (names or "").split(",") if part.strip()]
    return [bench.name for bench in find(wanted)]


def _plan(name: str, limit: int | None, data: Path | None) -> dict[str, Any]:
    bench = find([name])[0]
    docs = bench.docs(data)[:limit]
    return {
        "bench": name,
        "rows": len(docs),
        "max_new_tokens": bench.max_new_tokens,
        "most_reply_tokens": len(docs) * bench.max_new_tokens,
        "first_prompts": [d.prompt for d in docs[:2]],
    }


def _plan_text(plan: dict[str, Any]) -> str:
    head = (
        f"{plan['bench']}: {plan['rows']} rows, replies of at most {plan['max_new_tokens']} tokens "
        f"({plan['most_reply_tokens']:,} in all)"
    )
    return "\n".join([head, *("  " + prompt.replace("\n", "\n  ") for prompt in plan["first_prompts"])])


def _results(results: list[RunSummary]) -> str:
    from trimoe.judge.stats import wilson

    lines = []
    for r in results:
        low, high = wilson(r.correct, r.n - r.unscored)
        score = (
            "not scored" if r.score is None else f"{100 * r.score:5.1f} %  (95 %: {100 * low:.1f} to {100 * high:.1f})"
        )
        misses = ", ".join(f"{count} {cause}" for cause, count in r.causes.items() if cause != "correct")
        lines.append(f"{r.bench:<12} {r.correct:>4}/{r.n - r.unscored:<4} {score}  {misses}".rstrip())
    return "\n".join(lines)


@click.group("log")
def log_group() -> None:
    """Look into a run log.

    \b
    Examples:
      trimoe log verify runs.db
      trimoe log export runs.db --format jsonl > samples.jsonl
    """


@log_group.command("verify")
@click.argument("db", type=click.Path(path_type=Path))
@json_option
def log_verify(db: Path, as_json: bool) -> int:
    """Check the file and everything it says about itself. Exit 1 when something is wrong.

    \b
    Examples:
      trimoe log verify runs.db
    """
    with RunLog(db, create=False) as log:
        faults, runs = log.verify(), len(log.runs())
    text = "\n".join(faults) or f"sound: {runs} runs"
    emit({"log": str(db), "sound": not faults, "runs": runs, "faults": faults}, text, as_json)
    return 1 if faults else 0


@log_group.command("export")
@click.argument("db", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["jsonl"]), default="jsonl", show_default=True, help="One row per sample."
)
@json_option
def log_export(db: Path, form: str, as_json: bool) -> None:
    """Print every sample: bench, doc_id, correct (null = not scored), cause, model, name, reply and more.

    \b
    Examples:
      trimoe log export runs.db --format jsonl > samples.jsonl
      trimoe log export runs.db --json
    """
    with RunLog(db, create=False) as log:
        if as_json:
            click.echo(json.dumps({"log": str(db), "samples": list(_rows(log))}, ensure_ascii=False))
            return
        for row in _rows(log):
            click.echo(json.dumps(row, ensure_ascii=False))


def _rows(log: RunLog) -> Iterator[dict[str, Any]]:
    for run in log.runs():
        for scored in log.samples(run):
            s, v = scored.sample, scored.verdict
            yield {
                "bench": run.bench,
                "doc_id": s.doc_id,
                "correct": v.correct,
                "cause": v.cause,
                "name": run.name,
                "model": run.model,
                "run": run.identity,
                "spec": run.spec_hash,
                "sampler": run.sampler,
                "prompt": s.prompt,
                "reply": s.reply,
                "extracted": v.extracted,
                "detail": v.detail,
                "finish_reason": s.finish_reason,
                "prompt_tokens": s.prompt_tokens,
                "reply_tokens": s.reply_tokens,
            }


@click.command("rescore")
@click.argument("db", metavar="RUNS.db", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="As for eval.")
@sandbox_options
@json_option
def rescore_(
    db: Path, data: Path | None, sandbox: str | None, sandbox_image: str | None, unsafe_no_sandbox: bool, as_json: bool
) -> None:
    """Judge every stored reply again, without generating anything.

    \b
    Examples:
      trimoe rescore runs.db
    """
    results = rescore(db, data, policy_of(sandbox, sandbox_image, unsafe_no_sandbox))
    emit({"log": str(db), "runs": [r.as_dict() for r in results]}, _results(results), as_json)


COMMANDS: list[click.Command] = [eval_, log_group, rescore_]
