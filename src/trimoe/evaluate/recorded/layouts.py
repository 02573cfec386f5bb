"""Recognises the layout of a file of recorded samples by its keys, and reads its replies.

Invariants: the layout follows from the first record, and every record must fit it; a record that does not is refused
with its file, line and field.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from trimoe.bench.bench import Bench, Doc
from trimoe.bench.row_sources import located_rows
from trimoe.errors import BenchError
from trimoe.evaluate.recorded import code, inspect_log, lm_eval
from trimoe.evaluate.recorded.record import Place, Recorded

# Name, keys that a record has, keys of which it has at least one, keys that it lacks. The first that fits counts.
_LAYOUTS: tuple[tuple[str, frozenset[str], frozenset[str], frozenset[str]], ...] = (
    ("inspect", frozenset({"eval", "status"}), frozenset({"samples", "plan", "version"}), frozenset()),
    ("evalplus", frozenset({"eval", "hash"}), frozenset(), frozenset({"status"})),
    ("lm-eval", frozenset({"doc_id"}), frozenset({"resps", "doc", "arguments", "filtered_resps"}), frozenset()),
    ("multipl-e", frozenset({"name", "language", "prompt", "tests"}), frozenset(), frozenset()),
    ("livecodebench", frozenset({"question_id"}), frozenset({"output_list", "code_list"}), frozenset()),
    ("evalplus", frozenset({"task_id", "solution"}), frozenset(), frozenset()),
    ("human-eval", frozenset({"task_id", "completion", "passed", "result"}), frozenset(), frozenset({"reason"})),
    ("reference", frozenset({"task_id", "completion", "passed"}), frozenset(), frozenset()),
    ("human-eval", frozenset({"task_id", "completion"}), frozenset(), frozenset()),
)
LAYOUTS = ("lm-eval", "human-eval", "evalplus", "livecodebench", "multipl-e", "inspect")
_READERS = {
    "lm-eval": lm_eval.read,
    "multipl-e": code.multipl_e,
    "livecodebench": code.livecodebench,
    "evalplus": code.evalplus,
    "human-eval": code.human_eval,
    "reference": code.reference,
}


def read_samples(file: Path, bench: Bench, docs: Sequence[Doc] = (), source: str | None = None) -> list[Recorded]:
    """Every recorded reply, in the order of the file; each row of the bench has the same number of replies.

    `docs` are the rows of the bench if they are local. `source` is the layout that the caller expects, None for any.
    Raises `BenchError` for a file of another or unknown layout, for a record that does not fit it, and for rows with
    different numbers of replies.
    """
    layout, rows = _opened(file)
    if source and source != layout and not (layout == "reference" and source in ("lm-eval", "livecodebench")):
        raise BenchError(
            f"{file} holds no records of {source}",
            expected=f"the layout of {source}",
            actual=f"the layout of {layout}",
            remedy=f"use --from {layout}, or leave --from out" if layout in LAYOUTS else "leave --from out",
        )
    read = inspect_log.read(rows, bench, docs) if layout == "inspect" else _READERS[layout](rows, bench)
    return _epochs(file, list(read))


def _opened(file: Path) -> tuple[str, Iterator[tuple[Place, Any]]]:
    """The layout, and every record with its place."""
    if file.suffix == ".eval":
        return "inspect", inspect_log.zipped_samples(file)
    rows = ((Place(file, at), row) for at, row in located_rows(file))
    first = next(rows, None)
    if first is None:
        raise BenchError(f"{file} holds no samples", expected="at least one row", remedy="check the path")
    layout = _layout(*first)
    place, row = first
    if layout == "inspect":
        return layout, inspect_log.samples_of(file, row)
    if layout == "evalplus" and "eval" in row:
        return layout, _evalplus_results(place, row["eval"])
    return layout, chain([first], rows)


def _layout(place: Place, row: Mapping[str, Any]) -> str:
    keys = row.keys()
    for name, every, some, none in _LAYOUTS:
        if every <= keys and (not some or some & keys) and not none & keys:
            return name
    if {"results", "configs"} <= keys:
        place.refuse(
            lm_eval.LAYOUT,
            "lm-eval's summary of a run (results, configs), which holds scores and no replies",
            "give the file samples_TASK_*.jsonl beside it; lm-eval writes it with --log_samples",
        )
    raise BenchError(
        f"{place.file} {place.at} is not a recorded sample: its layout is not known",
        expected="records of "
        + "; ".join((lm_eval.LAYOUT, code.HUMAN_EVAL, code.EVALPLUS, code.LIVECODEBENCH, code.MULTIPL_E))
        + "; "
        + inspect_log.LAYOUT,
        actual=f"the fields {', '.join(sorted(map(str, keys)))}"[:300],
        remedy="record the samples with one of these programs (lm-eval: --log_samples)",
    )


def _evalplus_results(place: Place, tasks: Any) -> Iterator[tuple[Place, Any]]:
    if not isinstance(tasks, dict):
        place.refuse(code.EVALPLUS, f"field eval: {type(tasks).__name__} instead of an object")
    for task, results in tasks.items():
        if not isinstance(results, list):
            place.refuse(code.EVALPLUS, f"field eval.{task}: {type(results).__name__} instead of a list")
        for number, one in enumerate(results):
            at = Place(place.file, f"eval.{task}[{number}]")
            yield at, {"task_id": task, **one} if isinstance(one, dict) else one


def _epochs(file: Path, samples: Sequence[Recorded]) -> list[Recorded]:
    """The samples, if every row has the epochs 1 to N, each once."""
    if not samples:
        raise BenchError(f"{file} holds no samples", expected="at least one row", remedy="check the path")
    seen: dict[str, list[int]] = {}
    for one in samples:
        seen.setdefault(one.doc_id, []).append(one.epoch)
    most = max(len(epochs) for epochs in seen.values())
    for doc_id, epochs in seen.items():
        if sorted(epochs) != list(range(1, most + 1)):
            raise BenchError(
                f"{file} does not hold the same number of replies to every row",
                expected=f"{most} replies each, because one row has as many",
                actual=f"row {doc_id} has {len(epochs)}",
                remedy="complete the file, or split it by repetition and import each part under its own name",
            )
    return list(samples)
