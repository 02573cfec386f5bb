"""Imports samples recorded by lm-eval into a run log and judges them with trimoe's extraction and scorers, offline.

Invariants: a recorded verdict is never adopted; it is compared with trimoe's, and every difference is reported. The
records include their questions, so no data set is needed; replies of records without them (LiveCodeBench) stay
unscored. Two rows of one document (lm-eval writes one per filter) count once and must hold the same reply.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.bench.catalog import find
from trimoe.bench.cause import Observed
from trimoe.bench.row_sources import read_file
from trimoe.errors import BenchError
from trimoe.evaluate.log.records import UNCOUNTED, Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary, summarize
from trimoe.io.canonical import sha256_file


@dataclass(frozen=True)
class Recorded:
    """One recorded sample. `verdict` is the recorded one, None if there is none for the bench's metric."""

    doc_id: str
    reply: str
    doc: Mapping[str, Any] | None
    prompt: str | None
    finish_reason: str
    prompt_tokens: int
    reply_tokens: int
    verdict: bool | None
    arguments: Mapping[str, Any]
    reasoning: str = ""
    reasoning_field: str = ""
    reasoning_tokens: int = UNCOUNTED


@dataclass(frozen=True)
class Difference:
    """A sample whose recorded verdict differs from trimoe's; `reason` if the bench's spec lists one."""

    doc_id: str
    recorded: bool
    ours: bool
    cause: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """The result of an import: the run's summary and the comparison with the recorded verdicts."""

    summary: RunSummary
    metric: str
    compared: int
    differences: tuple[Difference, ...]


def import_lm_eval(
    file: Path, bench_name: str, log_path: Path, *, name: str | None = None, data: Path | None = None
) -> Imported:
    """Import a samples file of lm-eval (JSON lines, optionally gzipped), or LiveCodeBench records of the reference.

    The run is labelled `name` (default: the file's name up to its first dot). Importing a file again changes nothing.
    Raises `BenchError` for rows in another format, `UsageError` for an unknown bench.
    """
    bench = find([bench_name])[0]
    samples = read_samples(file, bench)
    docs = _docs(samples, bench, data)
    verdicts = _judged(samples, docs, bench)
    spec = {
        **bench.spec([doc for doc in docs if doc is not None]),
        "imported": {"from": "lm-eval", "sha256": sha256_file(file)},
    }
    sampler = {"engine": "recorded", **dict(samples[0].arguments)}
    with RunLog(log_path) as log:
        label = name or file.name.partition(".")[0]
        run = log.start(label, bench.name, spec, "recorded", sampler, {"file": file.name})
        rows = [
            (_sample(place, sample, doc), verdict)
            for place, (sample, doc, verdict) in enumerate(zip(samples, docs, verdicts, strict=True))
        ]
        log.add(run, rows, bench.scorer)
        log.event(run, "imported", file=file.name, samples=len(rows))
        summary = summarize(log, run)
    pairs = [(s, v) for s, v in zip(samples, verdicts, strict=True) if s.verdict is not None and v.correct is not None]
    metric = bench.protocol.metric if bench.protocol else ""
    return Imported(summary, metric, len(pairs), tuple(_differences(pairs, bench)))


def read_samples(file: Path, bench: Bench) -> list[Recorded]:
    """One sample per document, in the order of the file."""
    metric, _, wanted = (bench.protocol.metric if bench.protocol else "").partition(",")
    found: dict[str, Recorded] = {}
    for number, row in enumerate(read_file(file), 1):
        try:
            sample = _reference_row(row) if "completion" in row else _lm_eval_row(row, metric, wanted)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
            raise BenchError(
                f"{file} row {number} is not a recorded sample",
                expected="a row of lm-eval's samples file (doc_id, doc, resps)",
                actual=f"{type(exc).__name__}: {exc}",
                remedy="run lm-eval with --log_samples",
            ) from exc
        before = found.setdefault(sample.doc_id, sample)
        if before.reply != sample.reply:
            raise BenchError(
                f"{file} holds two different replies to document {sample.doc_id}",
                expected="the samples of one run",
                remedy="split the file by run",
            )
        if before.verdict is None and sample.verdict is not None:
            found[sample.doc_id] = sample
    if not found:
        raise BenchError(f"{file} holds no samples", expected="at least one row", remedy="check the path")
    return list(found.values())


def _lm_eval_row(row: Mapping[str, Any], metric: str, wanted: str) -> Recorded:
    first = row["resps"][0]
    reply = first if isinstance(first, str) else (first[0] if first else "")
    arguments = row.get("arguments", {}).get("gen_args_0", {})
    ours = row.get("trimoe") or {}  # written by `trimoe log export --format lm-eval`
    filtered = not wanted or row.get("filter") in (None, "none", wanted)
    verdict = bool(row[metric]) if filtered and metric in row else None
    return Recorded(
        str(row["doc_id"]),
        str(reply or ""),
        row["doc"],
        _prompt(arguments.get("arg_0")),
        str(ours.get("finish_reason") or ""),
        _counted(ours.get("prompt_tokens")),
        _counted(ours.get("reply_tokens")),
        verdict,
        arguments.get("arg_1", {}),
        str(ours.get("reasoning") or ""),
        str(ours.get("reasoning_field") or ""),
        _counted(ours.get("reasoning_tokens")),
    )


def _counted(tokens: Any) -> int:
    return UNCOUNTED if tokens is None else int(tokens)


def _prompt(argument: Any) -> str | None:
    """The prompt; lm-eval stores the turns of a chat as JSON text in a list."""
    return str(argument[0] if isinstance(argument, list) else argument) if argument else None


def _reference_row(row: Mapping[str, Any]) -> Recorded:
    """A row of the reference's own runner, where the question is missing or replaced by its hash."""
    return Recorded(
        str(row["task_id"]),
        str(row["completion"] or ""),
        None,
        row.get("prompt"),
        row.get("finish_reason") or "",
        int(row.get("prompt_tokens") or UNCOUNTED),
        int(row.get("completion_tokens") or UNCOUNTED),
        bool(row["passed"]),
        {},
    )


def _docs(samples: Sequence[Recorded], bench: Bench, data: Path | None) -> list[Doc | None]:
    """Each sample's row of the bench: from the record, or from local files if the record has none."""
    here = bench.protocol is None or (data is not None and any(sample.doc is None for sample in samples))
    known = {doc.doc_id: doc for doc in bench.docs(data)} if here else {}
    return [_doc(sample, bench, known) for sample in samples]


def _doc(sample: Recorded, bench: Bench, known: Mapping[str, Doc]) -> Doc | None:
    if sample.doc is None or bench.record is None:
        return known.get(sample.doc_id)
    try:
        return bench.record(sample.doc_id, sample.doc)
    except (BenchError, KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise BenchError(
            f"document {sample.doc_id} is not a row of {bench.name}",
            expected="the columns of that bench's data set",
            actual=f"{type(exc).__name__}: {exc}",
            remedy="check --bench",
        ) from exc


def _judged(samples: Sequence[Recorded], docs: Sequence[Doc | None], bench: Bench) -> list[Verdict]:
    seen = [(_observed(s), doc) for s, doc in zip(samples, docs, strict=True) if doc is not None]
    scored = iter(bench.judge_observed(seen))
    return [
        next(scored) if doc is not None else _unscored(sample, bench) for sample, doc in zip(samples, docs, strict=True)
    ]


def _observed(sample: Recorded) -> Observed:
    return _sample(0, sample, None).observed()


def _unscored(sample: Recorded, bench: Bench) -> Verdict:
    reason = "the record has no tests; give --data with the data set to score it"
    return Verdict(None, "harness error", bench.extract(sample.reply), reason)


def _sample(place: int, sample: Recorded, doc: Doc | None) -> Sample:
    prompt = sample.prompt if sample.prompt is not None else doc.prompt if doc else ""
    position = int(sample.doc_id) if sample.doc_id.isdecimal() else place
    return Sample(
        sample.doc_id,
        position,
        prompt,
        sample.reply,
        sample.finish_reason,
        sample.prompt_tokens,
        sample.reply_tokens,
        sample.reasoning,
        sample.reasoning_field,
        bool(sample.reasoning.strip()) and not sample.reply.strip(),
        sample.reasoning_tokens,
    )


def _differences(pairs: Iterable[tuple[Recorded, Verdict]], bench: Bench) -> Iterable[Difference]:
    known = {e.doc_id: e.reason for e in bench.protocol.exceptions} if bench.protocol else {}
    for sample, verdict in pairs:
        if sample.verdict != verdict.correct:
            reason = known.get(sample.doc_id, "")
            yield Difference(sample.doc_id, bool(sample.verdict), bool(verdict.correct), verdict.cause, reason)
