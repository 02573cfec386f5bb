"""MBPP: reference solutions pass all their tests, challenge tests too; other functions do not."""

import pytest

from helpers.code_rows import Rows
from trimoe.bench.bench import Doc
from trimoe.bench.code import mbpp

FILE = "mbpp/mbpp.jsonl.gz"


def pairs_of(rows: Rows, code: str | None = None) -> list[tuple[str, Doc]]:
    return [
        (
            row["code"] if code is None else code,
            Doc(
                str(row["task_id"]),
                "",
                "",
                {"setup": row["test_setup_code"], "tests": [*row["test_list"], *row["challenge_test_list"]]},
            ),
        )
        for row in rows(FILE)
    ]


@pytest.mark.slow
def test_every_reference_solution_passes(rows: Rows) -> None:
    pairs = pairs_of(rows)
    verdicts = mbpp.score(pairs)
    assert [(d.doc_id, v.detail) for (_, d), v in zip(pairs, verdicts, strict=True) if not v.correct] == []
    assert len(verdicts) == 974


def test_other_solutions_fail(rows: Rows) -> None:
    pairs = pairs_of(rows)[10:60]
    replace = """
import types
for name, value in list(globals().items()):
    if isinstance(value, types.FunctionType): globals()[name] = lambda *a: object()
"""
    none = [(f"{source}\n{replace}", doc) for source, doc in pairs]
    assert {v.cause for v in mbpp.score(none)} == {"wrong"}
    assert {v.cause for v in mbpp.score([("x = 1", doc) for _, doc in pairs])} == {"code error"}


@pytest.mark.parametrize(
    ("tests", "modules", "names"),
    [
        ("assert f(1) == 2", [], ["f"]),
        ("assert f(sys.maxsize) == math.floor(2.5)", ["math", "sys"], ["f"]),
        ("import math\nassert math.isclose(f(1), 2)", [], ["f"]),
        ("root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2", [], ["Node", "depth"]),
        ("assert sum(10, 15) == 6", [], ["sum"]),
        ("assert f([x for x in range(3)], key=lambda y: y) == 2", [], ["f"]),
        ("assert set(f((1, 2))) == {1}", [], ["f"]),
    ],
)
def test_names_that_tests_take_from_elsewhere(tests: str, modules: list[str], names: list[str]) -> None:
    assert mbpp.foreign_names(tests) == (modules, names)
