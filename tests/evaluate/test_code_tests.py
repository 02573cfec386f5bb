"""Code benches through the sandbox: right code passes, wrong, broken and endless code does not, each with its cause."""

from pathlib import Path

import pytest

from trimoe.evaluate import code_tests
from trimoe.evaluate.bench import Doc, find
from trimoe.evaluate.code_tests import check_asserts, check_function, check_method, check_program, listed
from trimoe.evaluate.sandbox import Limits

FUNCTION = {
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}


def causes(check: dict[str, object], sources: list[str], judge: object) -> list[str]:
    assert callable(judge)
    return [v.cause for v in judge([(source, Doc("0", "", "", check)) for source in sources])]


def test_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tests, "_FUNCTION_LIMITS", Limits(cpu=1, wall=15))
    sources = [
        "def f(x): return 2 * x",
        "def f(x): return 3 * x",
        "def f(x): return x / 0",
        "def g(x): return 2 * x",
        "def f(x:",
        "def f(x):\n    while True: pass",
        "def f(x): raise SystemExit(0)",
    ]
    assert causes(FUNCTION, sources, check_function) == [
        "correct", "wrong", "code error", "code error", "code error", "code timeout", "code error"]  # fmt: skip


def test_asserts() -> None:
    check = {"setup": "K = 2", "tests": ["assert f(2) == 4", "assert f(0) == 0"]}
    sources = ["def f(x): return K * x", "def f(x): return x", "x = "]
    assert causes(check, sources, check_asserts) == ["correct", "wrong", "code error"]


def test_methods() -> None:
    check = {"method": "f", "tests": [[[[1, 2], 3], [3, [1, 2]]], [[[], 0], [0, []]]]}
    head = "class Solution:\n    def f(self, a: List[int], b: int):\n        "
    sources = [
        head + "return (b, a)",  # a tuple is as good as a list
        head + "return [b, tuple(a)]",
        head + "return [b, a, a]",
        head + "return undefined",
        head + "return object()",
        head + "return Counter(a) and [b, a] or [b, a]",  # the usual modules are there
        "def f(a, b): return [b, a]",
    ]
    assert causes(check, sources, check_method) == [
        "correct", "correct", "wrong", "code error", "wrong", "correct", "code error"]  # fmt: skip


def test_values_of_methods_are_compared_outside() -> None:
    """A candidate that overloads equality, or prints a verdict, does not pass."""
    sneaky = "class Yes:\n    def __eq__(self, other): return True\nclass Solution:\n    def f(self, x): return Yes()"
    assert causes({"method": "f", "tests": [[[1], 1]]}, [sneaky], check_method) == ["wrong"]


def test_a_language_without_a_toolchain_is_not_run_and_not_zero() -> None:
    verdict = check_program([("fn main() {}", Doc("rs::x", "", "", {"language": "rs"}))])[0]
    assert (verdict.correct, verdict.cause) == (None, "harness error")
    assert "not run" in verdict.detail


def test_lists_and_tuples() -> None:
    assert listed((1, [2, (3,)], {"a": (4,)})) == [1, [2, [3]], {"a": [4]}]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_reference_solutions_pass(name: str, shared: Path) -> None:
    bench = find([name])[0]
    docs = bench.docs(shared / "benchmarks")[:40]
    verdicts = bench.judge([(doc.reference, "stop", doc) for doc in docs])
    assert [(doc.doc_id, v.detail) for doc, v in zip(docs, verdicts, strict=True) if not v.correct] == []
