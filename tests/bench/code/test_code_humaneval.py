"""HumanEval and HumanEval+ as check functions: canonical solutions pass, others do not, cheats neither."""

from typing import Any

import pytest

from helpers.code_rows import Rows
from trimoe.bench.bench import Doc
from trimoe.bench.code import humaneval

ORIGINAL, PLUS = "humaneval/HumanEval.jsonl.gz", "humaneval_plus/HumanEvalPlus-OriginFmt.jsonl.gz"


def doc(row: dict[str, Any]) -> Doc:
    return Doc(row["task_id"], "", "", {name: row[name] for name in ("prompt", "test", "entry_point")})


def solution(row: dict[str, Any]) -> str:
    return str(row["prompt"] + row["canonical_solution"])


def test_every_canonical_solution_passes(rows: Rows) -> None:
    found = rows(ORIGINAL)
    verdicts = humaneval.score([(solution(row), doc(row)) for row in found])
    assert [(v.detail, row["task_id"]) for v, row in zip(verdicts, found, strict=True) if not v.correct] == []
    assert len(verdicts) == 164


def test_doing_nothing_or_the_opposite_fails_everywhere(rows: Rows) -> None:
    found = rows(ORIGINAL)
    idle = [(row["prompt"] + "    return None\n", doc(row)) for row in found]
    assert [v.correct for v in humaneval.score(idle)] == [False] * 164
    neighbour = [
        (solution(row) + f"\n{row['entry_point']} = lambda *a: {i}.5\n", doc(row)) for i, row in enumerate(found)
    ]
    assert [d.doc_id for (_, d), v in zip(neighbour, humaneval.score(neighbour), strict=True) if v.correct] == []


@pytest.mark.slow
def test_plus_rows_pass_and_the_row_that_no_answer_passes_is_mended(rows: Rows) -> None:
    found = rows(PLUS)
    chosen = [row for i, row in enumerate(found) if i % 8 == 0]  # 32 among them
    assert sum("*candidate(*inp)" in row["test"] for row in found) == 1
    verdicts = humaneval.score([(solution(row), doc(row)) for row in chosen])
    assert [(row["task_id"], v.detail) for v, row in zip(verdicts, chosen, strict=True) if not v.correct] == []
    (broken,) = (row for row in found if row["task_id"] == "HumanEval/32")
    wrong = solution(broken) + "\ndef find_zero(xs): return 1.0\n"
    helper = solution(broken) + "\ndef poly(xs, x): return 0.0\ndef find_zero(xs): return 1.0\n"
    assert [v.correct for v in humaneval.score([(wrong, doc(broken)), (helper, doc(broken))])] == [False, False]


def test_the_helpers_of_a_test_are_the_prompt_s_not_the_candidate_s(rows: Rows) -> None:
    (row,) = (row for row in rows(ORIGINAL) if row["task_id"] == "HumanEval/32")
    cheat = solution(row) + "\ndef poly(xs, x): return 0.0\ndef find_zero(xs): return 5.0\n"
    (verdict,) = humaneval.score([(cheat, doc(row))])
    assert (verdict.correct, verdict.cause) == (False, "wrong")


def test_recorded_verdicts_are_reproduced(shared: Any) -> None:
    """Real replies of a model, with the verdict its harness gave."""
    import gzip
    import json

    path = shared / "reference" / "omnimergekit-data" / "eval_samples" / "humaneval.samples.jsonl.gz"
    with gzip.open(path, "rt") as handle:
        samples = [json.loads(line) for line in handle]
    pairs, recorded = [], []
    for sample in samples:
        answer = sample["filtered_resps"][0]
        source = answer[0] if isinstance(answer, list) else answer
        pairs.append((source, doc(sample["doc"])))
        recorded.append(bool(next(value for name, value in sample.items() if name.startswith("pass@1"))))
    verdicts = humaneval.score(pairs)
    different = [d.doc_id for (_, d), v, r in zip(pairs, verdicts, recorded, strict=True) if v.correct != r]
    assert different == []
    assert 30 < sum(recorded) < len(recorded)
