"""Runs the code of code benches against their tests; the one place that knows how code is executed.

Each function takes (source, row) pairs and gives one verdict each, in order. A test that the sandbox could not run is
not scored; a failed assertion is a wrong answer, any other exception a code error. The candidate runs in the same
process as its tests where the tests are code (HumanEval, MBPP); for functional tests (LiveCodeBench) the expected
values stay outside.
"""

import ast
from collections.abc import Sequence
from typing import Any

from trimoe.evaluate.bench import Doc, Verdict
from trimoe.evaluate.sandbox import Job, Limits, Outcome, run_jobs

Pairs = Sequence[tuple[str, Doc]]

_RUN = "_trimoe_run"
_FUNCTION_LIMITS = Limits(cpu=10, wall=30, memory=2 << 30)
_METHOD_LIMITS = Limits(cpu=10, wall=30, memory=2 << 30)
_MODULES = ("typing", "collections", "math", "heapq", "bisect", "itertools", "functools")
_PREAMBLE = "".join(f"import {name}\nfrom {name} import *\n" for name in _MODULES)


def check_function(pairs: Pairs) -> list[Verdict]:
    """HumanEval's form: the row's test defines `check`, which is called with the entry point."""
    programs = [
        "\n".join([source, doc.check["test"], _runner(f"check({doc.check['entry_point']})")]) for source, doc in pairs
    ]
    return _passed(pairs, programs)


def check_asserts(pairs: Pairs) -> list[Verdict]:
    """MBPP's form: a list of assert statements after the candidate."""
    programs = [
        "\n".join([doc.check["setup"], source, _runner("\n    ".join(doc.check["tests"]))]) for source, doc in pairs
    ]
    return _passed(pairs, programs)


def check_method(pairs: Pairs) -> list[Verdict]:
    """LiveCodeBench's form: a method of `Solution` is called with each test's arguments, results compared outside."""
    jobs = [_method_job(source, doc) for source, doc in pairs]
    outcomes = run_jobs(jobs, _METHOD_LIMITS)
    return [_compared(source, doc, outcome) for (source, doc), outcome in zip(pairs, outcomes, strict=True)]


def check_program(pairs: Pairs) -> list[Verdict]:
    """MultiPL-E's form: a whole program that must compile and end well. No compiler is called yet."""
    return [
        Verdict(None, "harness error", source, f"not run: no toolchain for {doc.check['language']} in the sandbox")
        for source, doc in pairs
    ]


def _runner(statements: str) -> str:
    return f"def {_RUN}(_):\n    {statements}\n    return 'passed'\n"


def _passed(pairs: Pairs, programs: Sequence[str]) -> list[Verdict]:
    outcomes = run_jobs([Job(program, _RUN, ("None",)) for program in programs], _FUNCTION_LIMITS)
    return [
        _failed(source, outcome)
        if outcome.status != "ok"
        else Verdict(True, "correct", source)
        if outcome.results == ("'passed'",)
        else Verdict(False, "code error", source, "the candidate replaced the test")
        for (source, _), outcome in zip(pairs, outcomes, strict=True)
    ]


def _failed(source: str, outcome: Outcome) -> Verdict:
    if outcome.status == "harness":
        return Verdict(None, "harness error", source, outcome.detail)
    if outcome.status == "timeout":
        return Verdict(False, "code timeout", source, outcome.detail)
    wrong = outcome.detail.startswith("AssertionError")
    return Verdict(False, "wrong" if wrong else "code error", source, outcome.detail)


def _method_job(source: str, doc: Doc) -> Job:
    call = f"Solution().{doc.check['method']}(*arguments)"
    program = f"{_PREAMBLE}\n{source}\ndef {_RUN}(arguments):\n    return {call}\n"
    return Job(program, _RUN, tuple(repr(arguments) for arguments, _ in doc.check["tests"]))


def _compared(source: str, doc: Doc, outcome: Outcome) -> Verdict:
    if outcome.status != "ok":
        return _failed(source, outcome)
    for number, (result, (_, expected)) in enumerate(zip(outcome.results, doc.check["tests"], strict=True)):
        if listed(_value(result)) != expected:
            shown = f"test {number}: got {result[:80]} expected {str(expected)[:80]}"
            return Verdict(False, "wrong", source, shown)
    return Verdict(True, "correct", source)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return NotImplemented  # equal to nothing that a test expects


def listed(value: Any) -> Any:
    """Tuples as lists, at any depth: a test's text cannot tell them apart."""
    if isinstance(value, tuple | list):
        return [listed(item) for item in value]
    return {key: listed(item) for key, item in value.items()} if isinstance(value, dict) else value
