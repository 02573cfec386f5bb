"""`trimoe log`: verify, recover, import, export and merge run logs."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option
from trimoe.errors import UsageError
from trimoe.evaluate.log.export import rows, write_lm_eval, write_parquet
from trimoe.evaluate.log.merge import merge_logs
from trimoe.evaluate.log.recover import recover
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.schema import is_current, open_readonly
from trimoe.evaluate.log.verify import verified
from trimoe.evaluate.recorded.importing import Imported, import_samples
from trimoe.evaluate.recorded.layouts import LAYOUTS


@click.group("log")
def log_group() -> None:
    """Verify, recover, import, export and merge run logs.

    \b
    Examples:
      trimoe log verify runs.db
      trimoe log recover damaged.db -o recovered.db
      trimoe log import samples_gsm8k.jsonl --from lm-eval --bench gsm8k-100 --log runs.db
      trimoe log export runs.db --format jsonl > samples.jsonl
    """


@log_group.command("verify")
@click.argument("db", type=click.Path(path_type=Path))
@json_option
def log_verify(db: Path, as_json: bool) -> int:
    """Check the file, its hash chain and every derived number. Exit code 1 if something is wrong.

    A log of an earlier version had no hash chain: it is brought up to date first, and the note says so.

    \b
    Examples:
      trimoe log verify runs.db
    """
    with closing(open_readonly(db)) as opened:
        current = is_current(opened)
    with RunLog(db, create=False, readonly=current) as log:
        found = verified(log)
    faults, runs = found.faults, found.runs
    lines = [*(faults or [f"sound: {runs} runs"]), *(f"note: {note}" for note in found.notes)]
    body = {"log": str(db), "sound": not faults, "runs": runs, "faults": faults, "notes": found.notes}
    emit(body, "\n".join(lines), as_json)
    return 1 if faults else 0


@log_group.command("recover")
@click.argument("db", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", "--output", metavar="NEW.db", type=click.Path(path_type=Path), required=True, help="Log to write."
)
@json_option
def log_recover(db: Path, out: Path, as_json: bool) -> None:
    """Write what can be read of a damaged log into a new one, and list what is lost.

    The damaged log is not changed. Rows that cannot be read whole are left out, and the next `trimoe eval` asks for
    them again. Recovered runs are marked.

    \b
    Examples:
      trimoe log recover runs.db -o recovered.db
    """
    done = recover(db, out)
    lines = [f"{out}: " + ", ".join(f"{count} {table}" for table, count in done.kept.items() if count)]
    lines += [f"lost: {count} rows of {table}" for table, count in done.lost.items() if count]
    lines += [f"not readable: {what}" for what in done.unreadable]
    lines += [f"{count} rows of {table} differ from the old log's hash chain" for table, count in done.edited.items()]
    emit(done.as_dict(), "\n".join(lines), as_json)


@log_group.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--from",
    "source",
    type=click.Choice(LAYOUTS),
    help="Program that recorded the samples (default: recognised by the fields of its records).",
)
@click.option("--bench", required=True, help="Bench of the samples; its extraction and scorer judge them.")
@click.option(
    "--log", "log_path", metavar="RUNS.db", type=click.Path(path_type=Path), required=True, help="Run log to write."
)
@click.option("--name", help="Label of the run in tables (default: the file's name up to its first dot).")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with local data sets, for records without their rows (LiveCodeBench, human-eval, evalplus, Inspect).",
)
@click.option(
    "--matching-rows",
    is_flag=True,
    help="Import the rows that the bench asks, and leave out the others that the file holds.",
)
@json_option
def log_import(
    file: Path,
    source: str | None,
    bench: str,
    log_path: Path,
    name: str | None,
    data: Path | None,
    matching_rows: bool,
    as_json: bool,
) -> None:
    """Judge recorded replies with trimoe's extraction and scorers, offline, and store them as a run.

    Recorded verdicts are compared with trimoe's, and every difference is listed. Recorded rows are compared with the
    rows of the bench: other rows are refused, and what cannot be compared is a mark of the run. Several replies per
    row are imported as epochs: the score is their mean (pass@1), and pass@k and maj@k are shown. Nothing is generated
    or downloaded.

    \b
    Examples:
      trimoe log import samples_gsm8k.jsonl --from lm-eval --bench gsm8k-100 --log runs.db
      trimoe log import HumanEval_results.jsonl --bench humaneval --data benchmarks --log runs.db
      trimoe log import aime24.samples.jsonl.gz --from lm-eval --bench aime-2024 --log runs.db --name teacher --json
    """
    done = import_samples(file, bench, log_path, source=source, name=name, data=data, matching_rows=matching_rows)
    recorded = {
        "metric": done.metric,
        "compared": done.compared,
        "agree": done.compared - len(done.differences),
        "differ": [asdict(d) for d in done.differences],
    }
    body = {"log": str(log_path), "run": done.summary.as_dict(), "recorded": recorded, "rows": done.rows}
    if done.repeats:
        body["repeats"] = done.repeats.as_dict()
    emit(body, _imported(done), as_json)


def _imported(done: Imported) -> str:
    s = done.summary
    score = "not scored" if s.score is None else f"{100 * s.score:.1f} %"
    misses = ", ".join(f"{count} {cause}" for cause, count in s.causes.items() if cause != "correct")
    lines = [f"{s.bench}: {s.n} samples as {s.name}: {s.correct} correct, {score}  {misses}".rstrip()]
    if done.rows["renamed"]:
        lines.append(f"{done.rows['renamed']} have other ids in the file; their questions say which rows they are")
    lines += [f"! {mark}" for mark in s.marks]
    if done.repeats and done.repeats.pass_at:
        shares = [f"pass@{k} {100 * share:.1f} %" for k, share in done.repeats.pass_at.items()]
        if done.repeats.majority is not None:
            shares.append(f"maj@{done.repeats.epochs} {100 * done.repeats.majority:.1f} %")
        lines.append(f"{done.repeats.rows} rows, {done.repeats.epochs} replies each: {', '.join(shares)}")
    if done.compared:
        agree = done.compared - len(done.differences)
        lines.append(f"recorded {done.metric}: {agree} of {done.compared} verdicts agree")
    for d in done.differences:
        why = f": {d.reason}" if d.reason else ""
        lines.append(f"  {d.doc_id}: recorded {d.recorded}, trimoe {d.ours} ({d.cause}){why}")
    return "\n".join(lines)


@log_group.command("export")
@click.argument("db", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet", "lm-eval"]),
    default="jsonl",
    show_default=True,
    help="JSON lines to standard output, one Parquet file, or lm-eval's samples files (one per run).",
)
@click.option(
    "-o",
    "--out",
    "--output",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="File for parquet, folder for lm-eval.",
)
@click.option("--raw", is_flag=True, help="With jsonl: include the server's whole reply in each row.")
@json_option
def log_export(db: Path, form: str, out: Path | None, raw: bool, as_json: bool) -> None:
    """Write every sample: bench, doc_id, correct (null = not scored), cause, model, name, reply and more.

    \b
    Examples:
      trimoe log export runs.db --format jsonl > samples.jsonl
      trimoe log export runs.db --format parquet -o samples.parquet
      trimoe log export runs.db --format lm-eval -o samples
      trimoe log export runs.db --json
    """
    if (form == "jsonl") != (out is None):
        raise UsageError(
            f"--format {form} does not fit {'-o' if out else 'standard output'}",
            expected="-o PATH for parquet and lm-eval; jsonl goes to standard output",
            actual=f"-o {out}" if out else "no -o",
            remedy="leave -o out and redirect standard output" if out else "add -o PATH",
        )
    with RunLog(db, create=False) as log:
        if form == "parquet" and out is not None:
            count = write_parquet(log, out)
            emit({"log": str(db), "out": str(out), "samples": count}, f"{count} samples in {out}", as_json)
        elif form == "lm-eval" and out is not None:
            files = [str(file) for file in write_lm_eval(log, out)]
            emit({"log": str(db), "files": files}, "\n".join(files), as_json)
        elif as_json:
            click.echo(json.dumps({"log": str(db), "samples": list(rows(log, raw=raw))}, ensure_ascii=False))
        else:
            for row in rows(log, raw=raw):
                click.echo(json.dumps(row, ensure_ascii=False))


@log_group.command("merge")
@click.argument("logs", metavar="RUNS.db...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "--output",
    metavar="OUT.db",
    type=click.Path(path_type=Path),
    required=True,
    help="New log to write.",
)
@json_option
def log_merge(logs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Merge several logs into a new one. Logs that contradict each other are refused, with the contradictions.

    \b
    Examples:
      trimoe log merge monday.db tuesday.db -o all.db
    """
    merged = merge_logs(logs, out)
    text = f"{out}: {merged.runs} runs, {merged.samples} samples"
    emit({"log": str(out), "runs": merged.runs, "samples": merged.samples}, text, as_json)


COMMANDS: list[click.Command] = [log_group]
