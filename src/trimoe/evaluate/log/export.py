"""Exports samples for other tools: JSON lines, pandas, Parquet, lm-eval's samples files.

Invariants: one row per sample and named run, in the bench's order; "not scored" and "not counted" are null. A failed
sample is a row without a reply, except in lm-eval's format, which cannot express it and leaves it out.
Not guaranteed: `doc` is null in lm-eval's format, because a log keeps the prompt and not the row of the data set.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimoe.errors import MissingPrerequisite
from trimoe.evaluate.log.marks import shown_marks
from trimoe.evaluate.log.reader import LogReader
from trimoe.evaluate.log.records import Run, Scored, counted
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import canonical_json, sha256_bytes


def rows(log: LogReader, *, raw: bool = False) -> Iterator[dict[str, Any]]:
    """One row per sample; `raw` adds the server's whole reply."""
    for run in log.runs():
        marks = [mark.text for mark in shown_marks(log, run)]
        for scored in log.samples(run):
            row = _row(run, scored, marks)
            if raw:
                whole = log.raw(run, scored.sample.doc_id)
                row["raw"] = None if whole is None else whole.decode("utf-8", "replace")
            yield row


def _row(run: Run, scored: Scored, marks: list[str]) -> dict[str, Any]:
    s, v = scored.sample, scored.verdict
    return {
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
        "prompt_tokens": counted(s.prompt_tokens),
        "reply_tokens": counted(s.reply_tokens),
        "reasoning": s.reasoning,
        "reasoning_field": s.reasoning_field,
        "reasoning_tokens": counted(s.reasoning_tokens),
        "fallback": s.fallback,
        "error": s.error or None,
        "seconds": s.seconds,
        "marks": list(s.marks),
        "run_marks": marks,
    }


def to_pandas(log: LogReader) -> Any:
    """The rows as a `pandas.DataFrame`. Raises `MissingPrerequisite` without pandas."""
    try:
        import pandas
    except ImportError as exc:
        raise MissingPrerequisite(
            "a data frame needs pandas", actual=str(exc), remedy="pip install pandas, or use `trimoe log export`"
        ) from exc
    return pandas.DataFrame(list(rows(log)))


def write_parquet(log: LogReader, path: Path) -> int:
    """Write one Parquet file (the sampler as JSON text) and return the number of rows. Needs the extra `parquet`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise MissingPrerequisite(
            "writing Parquet needs pyarrow",
            actual=str(exc),
            remedy="pip install 'trimoe[parquet]', or use --format jsonl",
        ) from exc
    text, number = pyarrow.string(), pyarrow.int64()
    columns: dict[str, Any] = dict.fromkeys(
        (
            "bench",
            "doc_id",
            "cause",
            "name",
            "model",
            "run",
            "spec",
            "sampler",
            "prompt",
            "reply",
            "extracted",
            "detail",
            "finish_reason",
            "reasoning",
            "reasoning_field",
            "error",
            "raw",
        ),
        text,
    )
    columns |= dict.fromkeys(("prompt_tokens", "reply_tokens", "reasoning_tokens"), number)
    columns |= {"correct": pyarrow.bool_(), "fallback": pyarrow.bool_(), "seconds": pyarrow.float64()}
    columns |= dict.fromkeys(("marks", "run_marks"), pyarrow.list_(text))
    schema = pyarrow.schema(list(columns.items()))
    count = 0
    with publish_file(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for batch in _batches(rows(log, raw=True), 1000):
            plain = [{**row, "sampler": canonical_json(row["sampler"]).decode()} for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(plain, schema=schema))
            count += len(batch)
    return count


def _batches(source: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in source:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def write_lm_eval(log: LogReader, folder: Path) -> list[Path]:
    """Write one `samples_BENCH_NAME.jsonl` per run in the format of lm-eval's `--log_samples`; return the files.

    Values without a column of lm-eval's are in the column `trimoe`, which `trimoe log import` reads.
    """
    files = []
    for run in log.runs():
        marks = [mark.text for mark in shown_marks(log, run)]
        path = folder / f"samples_{_safe(run.bench)}_{_safe(run.name)}.jsonl"
        with publish_file(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
            for scored in log.samples(run):
                if not scored.sample.error:
                    handle.write(json.dumps(_lm_eval(run, scored, marks), ensure_ascii=False) + "\n")
        files.append(path)
    return files


def _lm_eval(run: Run, scored: Scored, marks: list[str]) -> dict[str, Any]:
    s, v = scored.sample, scored.verdict
    metric, _, wanted = str(run.spec.get("metric") or "exact_match").partition(",")
    row: dict[str, Any] = {
        "doc_id": int(s.doc_id) if s.doc_id.isdecimal() else s.doc_id,
        "doc": None,
        "target": None,
        "arguments": {"gen_args_0": {"arg_0": s.prompt, "arg_1": run.sampler}},
        "resps": [[s.reply]],
        "filtered_resps": [v.extracted],
        "filter": wanted or "none",
        "metrics": [metric],
        "prompt_hash": sha256_bytes(s.prompt.encode()),
        "trimoe": {
            "bench": run.bench,
            "cause": v.cause,
            "finish_reason": s.finish_reason,
            "prompt_tokens": counted(s.prompt_tokens),
            "reply_tokens": counted(s.reply_tokens),
            "reasoning": s.reasoning,
            "reasoning_field": s.reasoning_field,
            "reasoning_tokens": counted(s.reasoning_tokens),
            "run_marks": marks,
        },
    }
    if v.correct is not None:
        row[metric] = float(v.correct)
    return row


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
