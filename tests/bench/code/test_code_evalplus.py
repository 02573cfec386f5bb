"""HumanEval+ against the canonical solutions: all pass, HumanEval/32 too; near misses fail where the inputs show it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from trimoe.bench.code import evalplus, oracle
from trimoe.bench.code.evalplus import Problem
from trimoe.errors import BadInput, Refused
from trimoe.sandbox import Sandbox

DOUBLE = Problem("T/0", "def f(x):\n", "f", "    return x * 2\n", ((1,), (2,)), ((3,), (10**30,), (0.1,)), 0.0)
HEAD = DOUBLE.prompt


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def problems(shared: Path) -> dict[str, Problem]:
    return evalplus.problems(shared / "benchmarks" / "humaneval_plus" / "HumanEvalPlus.jsonl.gz")


@pytest.mark.slow
@pytest.mark.timeout(900)  # 32 s of CPU, which a busy machine stretches
def test_every_canonical_solution_passes(problems: dict[str, Problem], sandbox: Sandbox, tmp_path: Path) -> None:
    pairs = [(p.prompt + p.canonical_solution, p) for p in problems.values()]
    verdicts = evalplus.score(pairs, sandbox, tmp_path)
    assert [(p.task_id, v.detail) for (_, p), v in zip(pairs, verdicts, strict=True) if not v.correct] == []
    assert len(verdicts) == 164
    assert len(list(tmp_path.iterdir())) == 164


def test_any_root_is_right_and_nothing_else(problems: dict[str, Problem], sandbox: Sandbox, tmp_path: Path) -> None:
    problem = problems["HumanEval/32"]
    newton = problem.prompt + problem.canonical_solution
    closer = newton.replace("    return x\n", "    return x - func(x) / derivative(x) if derivative(x) else x\n")
    assert closer != newton
    others = [problem.prompt + f"    return {text}\n" for text in ("0.0", "None", "float('nan')", "'x'", "10 ** 400")]
    cheat = newton + "\ndef poly(xs, x): return 0.0\ndef find_zero(xs): return 1.0\n"
    verdicts = evalplus.score([(source, problem) for source in (newton, closer, *others, cheat)], sandbox, tmp_path)
    assert [v.correct for v in verdicts] == [True, True, *[False] * 6]


@pytest.mark.parametrize(
    ("body", "cause", "word"),
    [
        ("return x + x", "correct", ""),
        ("return x * 2 if x < 3 else 0", "wrong", "plus input 1: f(3,) gave 0, expected 6"),
        ("return 2", "wrong", "base input 2"),
        ("return x * 2 + (1e-9 if x == 0.1 else 0)", "correct", ""),
        ("return x * 2 + (1e-5 if x == 0.1 else 0)", "wrong", "plus input 3"),
        ("return 1 / 0", "code error", "ZeroDivisionError"),
        ("return x * 2 if x < 3 else 1 / 0", "code error", "call 3"),
        ("return 5 if x == 1 else 1 / 0", "wrong", "base input 1"),
        ("while x: pass", "code timeout", ""),
        ("import os; os._exit(0)", "code error", "ended early"),
        ("return [x * 2]", "wrong", ""),
        ("return 1 << 99999", "wrong", "a long int"),
    ],
)
def test_verdicts(
    body: str, cause: str, word: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evalplus, "ENVIRONMENT", replace(evalplus.ENVIRONMENT, call_seconds=1.0))
    (verdict,) = evalplus.score([(f"{HEAD}    {body}\n", DOUBLE)], sandbox, tmp_path)
    assert (verdict.cause, word in verdict.detail) == (cause, True), verdict


def test_long_results_are_compared_by_hash_and_in_full_when_the_hashes_differ(sandbox: Sandbox, tmp_path: Path) -> None:
    body = "    return [float(i) for i in range(n)]\n"
    long = Problem("T/1", "def f(n):\n", "f", body, ((3,),), ((50_000,),), 0.0)
    bodies = {
        body: True,
        "    return list(range(n))\n": True,  # the same numbers, as integers: other text, equal values
        "    return [i + 1e-9 for i in range(n)]\n": True,  # within tolerance
        "    return [i + (i == 40_000) for i in map(float, range(n))]\n": False,
        "    return tuple(map(float, range(n)))\n": False,
    }
    verdicts = evalplus.score([(f"def f(n):\n{b}", long) for b in bodies], sandbox, tmp_path)
    assert [v.correct for v in verdicts] == list(bodies.values())
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_size < 1000


def test_kept_results_are_used_and_damaged_ones_replaced(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = (f"{HEAD}    return x + x\n", DOUBLE)
    assert evalplus.score([pair], sandbox, tmp_path)[0].correct
    (kept,) = tmp_path.iterdir()
    good = kept.read_bytes()
    for damaged in (b"", b"{}", b'{"lines": [], "cpu": 0}', good[:-9], b'{"lines": [1, 2, 3, 4, 5], "cpu": 0}'):
        kept.write_bytes(damaged)
        assert evalplus.score([pair], sandbox, tmp_path)[0].correct
        assert json.loads(kept.read_bytes())["lines"] == json.loads(good)["lines"]
    monkeypatch.setattr(oracle, "_FORMAT", 0)
    evalplus.score([pair], sandbox, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # another format is another name


def test_a_canonical_solution_that_fails_scores_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = Problem("T/2", "def f(x):\n", "f", "    return 1 / x\n", ((1,), (0,)), (), 0.0)
    with pytest.raises(Refused, match="ZeroDivisionError"):
        evalplus.score([("def f(x): return 1", broken)], sandbox, tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for text in ("", "[1]", '{"task_id": "x"}', "no json"):
        (tmp_path / "rows.jsonl").write_text(text)
        if text:
            with pytest.raises(BadInput):
                evalplus.problems(tmp_path / "rows.jsonl")
    with pytest.raises(BadInput):
        evalplus.problems(tmp_path / "absent.jsonl.gz")
