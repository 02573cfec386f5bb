"""`trimoe log`: verify a run log, take recorded samples in, write samples out."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from trimoe.cli.common import emit, json_option
from trimoe.evaluate.log import UNCOUNTED, RunLog
from trimoe.evaluate.recorded import Imported, import_lm_eval


@click.group("log")
def log_group() -> None:
    """Look into a run log, take recorded samples in, write samples out.

    \b
    Examples:
      trimoe log verify runs.db
      trimoe log import samples_gsm8k.jsonl --from lm-eval --bench gsm8k-100 --log runs.db
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


@log_group.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--from", "source", type=click.Choice(["lm-eval"]), required=True, help="Who recorded the samples, in which form."
)
@click.option("--bench", required=True, help="The bench they are of; its extraction and scorer judge them.")
@click.option(
    "--log", "log_path", metavar="RUNS.db", type=click.Path(path_type=Path), required=True, help="Run log to write."
)
@click.option("--name", help="Label of the run in tables (default: the file's name up to its first dot).")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of local dataset files, for records without their rows (LiveCodeBench).",
)
@json_option
def log_import(
    file: Path, source: str, bench: str, log_path: Path, name: str | None, data: Path | None, as_json: bool
) -> None:
    """Judge recorded replies with our extraction and scorers, offline, and keep them as a run.

    Recorded verdicts are compared with ours; every difference is listed. Nothing is generated and nothing downloaded.

    \b
    Examples:
      trimoe log import samples_gsm8k.jsonl --from lm-eval --bench gsm8k-100 --log runs.db
      trimoe log import aime24.samples.jsonl.gz --from lm-eval --bench aime-2024 --log runs.db --name teacher --json
    """
    done = import_lm_eval(file, bench, log_path, name=name, data=data)
    recorded = {
        "metric": done.metric,
        "compared": done.compared,
        "agree": done.compared - len(done.differences),
        "differ": [asdict(d) for d in done.differences],
    }
    emit({"log": str(log_path), "run": done.summary.as_dict(), "recorded": recorded}, _imported(done), as_json)


def _imported(done: Imported) -> str:
    s = done.summary
    score = "not scored" if s.score is None else f"{100 * s.score:.1f} %"
    misses = ", ".join(f"{count} {cause}" for cause, count in s.causes.items() if cause != "correct")
    lines = [f"{s.bench}: {s.n} samples as {s.name}: {s.correct} correct, {score}  {misses}".rstrip()]
    if done.compared:
        agree = done.compared - len(done.differences)
        lines.append(f"recorded {done.metric}: {agree} of {done.compared} verdicts are ours")
    for d in done.differences:
        why = f": {d.reason}" if d.reason else ""
        lines.append(f"  {d.doc_id}: recorded {d.recorded}, ours {d.ours} ({d.cause}){why}")
    return "\n".join(lines)


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
                "prompt_tokens": _counted(s.prompt_tokens),
                "reply_tokens": _counted(s.reply_tokens),
            }


def _counted(tokens: int) -> int | None:
    return None if tokens == UNCOUNTED else tokens


COMMANDS: list[click.Command] = [log_group]
