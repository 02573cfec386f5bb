"""Recorded samples are taken for the bench's rows only if they are, whatever program wrote them."""

import gzip
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimoe.bench import row_sources
from trimoe.bench.bench import Verdict
from trimoe.bench.catalog import find
from trimoe.bench.pinned import pinned_rows, table_text
from trimoe.cli.log import log_group
from trimoe.errors import BenchError
from trimoe.evaluate.log.marks import marks_of
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.recorded.importing import Imported, import_samples
from trimoe.evaluate.recorded.layouts import read_samples
from trimoe.evaluate.recorded.repeats import repeats_of
from trimoe.io import expand
from trimoe.judge.audit.audit import audit
from trimoe.judge.gather import gather
from trimoe.judge.rows import own_row

TABLES = [path.stem for path in Path(row_sources.__file__).parent.joinpath("benches").glob("*.tsv")]
# The first row of GSM8K's test split (MIT).
DUCKS = {
    "question": "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for "
    "her friends every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. "
    "How much in dollars does she make every day at the farmers' market?",
    "answer": "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day at "
    "the farmer’s market.\n#### 18",
}


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lm_eval_row(doc_id: Any, doc: Mapping[str, Any] | None, *replies: str, **more: Any) -> dict[str, Any]:
    return {"doc_id": doc_id, "doc": doc, "arguments": {}, "resps": [list(replies)], **more}


def gsm8k(shared: Path) -> list[dict[str, Any]]:
    with gzip.open(shared / "benchmarks" / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def answered(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [lm_eval_row(number, row, f"#### {row['answer'].split('####')[1].strip()}") for number, row in rows]


def marks(log_path: Path) -> list[str]:
    with RunLog(log_path, create=False) as log:
        return [mark.flag for run in log.runs() for mark in marks_of(log, run)]


# ---------------------------------------------------------------- rows and the bench


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_pinned_data(name: str, shared: Path) -> None:
    file = Path(row_sources.__file__).parent / "benches" / f"{name}.tsv"
    assert file.read_text(encoding="utf-8") == table_text(name.replace("_", "-"), shared / "benchmarks")


def test_a_variant_asks_its_own_rows_of_the_table(shared: Path) -> None:
    for name in ("gsm8k-100", "gsm8k-100:stride", "gsm8k-100:all", "multipl-e-100", "ifeval-100:smoke"):
        bench = find([name])[0]
        pinned = pinned_rows(bench, None)
        assert pinned is not None
        assert set(pinned.asked) == {doc.doc_id for doc in bench.docs(shared / "benchmarks")}


def test_other_rows_under_the_ids_of_the_bench_are_refused(shared: Path, tmp_path: Path) -> None:
    rows = gsm8k(shared)
    file = written(tmp_path / "shifted.jsonl", answered((i, rows[1000 + i]) for i in range(100)))
    with pytest.raises(BenchError, match="100 of 100 documents are not rows of gsm8k-100"):
        import_samples(file, "gsm8k-100", tmp_path / "r.db")
    assert not (tmp_path / "r.db").exists()


def test_a_full_run_is_never_the_subset(shared: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "full.jsonl", answered(enumerate(gsm8k(shared))))
    with pytest.raises(BenchError, match=r"(?s)1219 of 1319.*--matching-rows, or .*gsm8k-100:all"):
        import_samples(file, "gsm8k-100", tmp_path / "r.db")
    part = import_samples(file, "gsm8k-100", tmp_path / "r.db", matching_rows=True)
    whole = import_samples(file, "gsm8k-100:all", tmp_path / "all.db")
    assert (part.summary.n, part.rows["left_out"], whole.summary.n) == (100, 1219, 1319)
    assert marks(tmp_path / "r.db") == ["OTHER_ROWS"]
    assert marks(tmp_path / "all.db") == []


def test_the_question_says_which_row_a_sample_is(shared: Path, tmp_path: Path) -> None:
    rows = gsm8k(shared)
    done = import_samples(
        written(tmp_path / "s.jsonl", answered(enumerate(rows[:1300:13]))), "gsm8k-100:stride", tmp_path / "r.db"
    )
    assert (done.summary.n, done.rows["renamed"], done.summary.score) == (100, 99, 1.0)
    with RunLog(tmp_path / "r.db", create=False) as log:
        assert [s.sample.doc_id for s in log.samples(log.runs()[0])] == [str(13 * i) for i in range(100)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([lm_eval_row(0, {**DUCKS, "answer": "#### 19"}, "#### 19")], "another answer than row 0"),
        ([lm_eval_row(0, {**DUCKS, "question": "What is 9 * 2?"}, "#### 18")], "1 of 1 documents are not rows"),
        ([lm_eval_row(0, DUCKS, "#### 18"), lm_eval_row(5, DUCKS, "#### 18")], "documents 0 and 5 are one row"),
        ([lm_eval_row(100, None, "#### 18")], "1 of 1 documents are not rows"),
        ([lm_eval_row(0, {"text": "other"}, "#### 18")], "not a row of gsm8k-100"),
    ],
)
def test_what_contradicts_the_bench_is_refused(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=message):
        import_samples(written(tmp_path / "s.jsonl", rows), "gsm8k-100", tmp_path / "r.db", matching_rows=True)
    assert not (tmp_path / "r.db").exists()


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        (lm_eval_row(0, DUCKS, "#### 18"), []),
        (lm_eval_row("x", DUCKS, "#### 18"), []),  # the question is row 0
        (lm_eval_row(0, None, "#### 18"), ["NOT_COMPARED"]),
        (
            lm_eval_row(0, DUCKS, "#### 18", arguments={"gen_args_0": {"arg_0": "Solve: x", "arg_1": {}}}),
            ["OTHER_PROMPTS"],
        ),
    ],
)
def test_what_cannot_be_compared_is_marked(row: dict[str, Any], flags: list[str], tmp_path: Path) -> None:
    import_samples(written(tmp_path / "s.jsonl", [row]), "gsm8k-100", tmp_path / "r.db")
    assert marks(tmp_path / "r.db") == flags
    (one,) = audit(tmp_path / "r.db").runs
    assert {"PARTIAL", *flags} <= set(one.flags)


def test_rows_of_a_bundled_bench_are_compared_by_their_prompts(tmp_path: Path) -> None:
    docs = find(["tiny-math"])[0].docs()
    right = [lm_eval_row(d.doc_id, None, d.reference, arguments=[[d.prompt, {}]]) for d in docs]
    done = import_samples(written(tmp_path / "s.jsonl", right), "tiny-math", tmp_path / "r.db")
    assert (done.summary.score, done.rows["compared"]) == (1.0, len(docs))
    other = [lm_eval_row("nobody", None, "7", arguments=[["What is 3 + 4?", {}]])]
    with pytest.raises(BenchError, match="not rows of tiny-math"):
        import_samples(written(tmp_path / "o.jsonl", other), "tiny-math", tmp_path / "o.db")


def test_an_older_log_with_more_items_than_rows_is_refused_by_the_audit(tmp_path: Path) -> None:
    with RunLog(tmp_path / "r.db") as log:
        from trimoe.evaluate.log.records import Sample

        run = log.start("m", "gsm8k-100", {"name": "gsm8k-100", "rows": 1}, "recorded", {}, {})
        right = Verdict(True, "correct", "18")
        log.add(run, [(Sample(str(i), i, "q", "x" * 80, "stop", 1, 9), right) for i in range(3)], 1)
    (one,) = audit(tmp_path / "r.db").runs
    assert "SURPLUS" in one.flags
    assert one.verdict == "refused"


# ---------------------------------------------------------------- several replies per row


def test_repeats_are_epochs(shared: Path, tmp_path: Path) -> None:
    done = import_samples(shared / "cases" / "evaluate" / "b_repeats.jsonl", "gsm8k-100", tmp_path / "r.db")
    assert done.repeats is not None
    assert (done.summary.n, done.summary.score, done.repeats.majority) == (20, 0.75, 1.0)
    assert done.repeats.pass_at == {"1": 0.75, "2": 1.0, "4": 1.0}
    assert marks(tmp_path / "r.db") == ["REPEATS"]


def repeated(tmp_path: Path, replies: list[list[str]], name: str = "r") -> Imported:
    docs = find(["tiny-math"])[0].docs()
    rows = [
        lm_eval_row(doc.doc_id, None, *(doc.reference if one == "right" else one for one in given))
        for doc, given in zip(docs, replies, strict=False)
    ]
    return import_samples(written(tmp_path / f"{name}.jsonl", rows), "tiny-math", tmp_path / f"{name}.db")


def test_rows_are_the_units_of_a_repeated_score(tmp_path: Path) -> None:
    done = repeated(tmp_path, [["right"] * 8, ["no"] * 8] * 10)
    assert done.summary.score == 0.5
    (read,) = gather([tmp_path / "r.db"]).values()
    row = own_row(read, True)
    assert row.score.n == 160
    assert row.score.high - row.score.low == pytest.approx(0.410, abs=0.001)  # as 20 independent items, not as 160


def test_numbers_of_replies_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="the same number of replies"):
        repeated(tmp_path, [["right", "no"], ["right"]])


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    right, wrong = Verdict(True, "correct", "1"), Verdict(False, "wrong", "2")
    found = repeats_of([("a", right), ("a", wrong), ("a", wrong), ("b", wrong), ("b", wrong), ("b", wrong)], 3)
    assert found is not None
    assert found.pass_at == pytest.approx({"1": 1 / 6, "2": (2 / 3) / 2, "3": 1 / 2})
    assert found.majority == 0.0
    unscored = repeats_of([("a", right), ("a", Verdict(None, "harness error"))], 2)
    assert unscored is not None
    assert (unscored.pass_at, unscored.majority) == (None, None)


def test_repeats_of_a_bench_in_parts_are_refused(shared: Path, tmp_path: Path) -> None:
    with gzip.open(shared / "benchmarks" / "multipl_e" / "humaneval-rs-reworded.json.gz", "rt") as handle:
        row = json.load(handle)[0]
    file = written(tmp_path / "rs.jsonl", [{**row, "completions": ["0 }", "1 }"]}])
    with pytest.raises(BenchError, match="has parts"):
        import_samples(file, "multipl-e-100", tmp_path / "r.db")


# ---------------------------------------------------------------- layouts

HUMAN_EVAL = {"task_id": "HumanEval/7", "completion": "    return []\n"}
LOGLIKELIHOOD = {"doc_id": 0, "doc": DUCKS, "acc": 1.0, "filter": "none"}


@pytest.mark.parametrize(
    ("row", "bench", "doc_id", "text", "verdict"),
    [
        (lm_eval_row(3, DUCKS, "#### 18"), "gsm8k-100", "3", "#### 18", None),
        ({**lm_eval_row(3, DUCKS, "5"), "arguments": [["Q:", {"until": []}]]}, "gsm8k-100", "3", "5", None),
        (HUMAN_EVAL, "humaneval", "7", "    return []\n", None),
        ({**HUMAN_EVAL, "result": "failed: x", "passed": False}, "humaneval", "7", "    return []\n", False),
        (
            {"task_id": "HumanEval/7", "solution": "def f(): 1"},
            "humaneval-plus",
            "7",
            "```python\ndef f(): 1\n```",
            None,
        ),
        ({"task_id": "Mbpp/11", "solution": "x = 1"}, "mbpp", "0", "```python\nx = 1\n```", None),
        (
            {"question_id": 3579, "platform": "leetcode", "output_list": ["text"], "graded_list": [True]},
            "lcb-medium-55",
            "lcb/leetcode/3579",
            "text",
            True,
        ),
        ({"question_id": "3579", "code_list": ["x"]}, "lcb-medium-55", "lcb/leetcode/3579", "```python\nx\n```", None),
        (
            {"task_id": "lcb/leetcode/3579", "completion": "text", "passed": True, "reason": ""},
            "lcb-medium-55",
            "lcb/leetcode/3579",
            "text",
            True,
        ),
        (
            {
                "name": "HumanEval_1_a",
                "language": "rs",
                "prompt": "fn a() {\n",
                "tests": "}\nfn main() {}",
                "results": [{"program": "fn a() {\n1\n}\nfn main() {}", "status": "OK", "exit_code": 0}],
            },
            "multipl-e-100",
            "rs::HumanEval_1_a",
            "```rust\nfn a() {\n1\n```",
            True,
        ),
    ],
)
def test_layouts_are_recognised_by_their_fields(
    row: dict[str, Any], bench: str, doc_id: str, text: str, verdict: bool | None, tmp_path: Path
) -> None:
    (one,) = read_samples(written(tmp_path / "s.jsonl", [row]), find([bench])[0])
    assert (one.doc_id, one.reply, one.verdict) == (doc_id, text, verdict)


@pytest.mark.parametrize(
    ("row", "bench", "message"),
    [
        (
            {**LOGLIKELIHOOD, "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " a"}}, "resps": [[["-3", "False"]]]},
            "gsm8k-100",
            "log-likelihoods",
        ),
        (
            {**LOGLIKELIHOOD, "arguments": [["q", " a"]], "resps": [[[-3.1, False]], [[-2.0, True]]]},
            "gsm8k-100",
            "log-l",
        ),
        ({**LOGLIKELIHOOD, "arguments": {"gen_args_0": {"arg_0": "q"}}, "resps": [[-31.5]]}, "gsm8k-100", "log-l"),
        (lm_eval_row(0, DUCKS), "gsm8k-100", ""),
        ({"doc_id": 0, "doc": DUCKS}, "gsm8k-100", r"line 2 .*(?s:.*)`resps`"),
        ({"doc_id": None, "doc": DUCKS, "resps": [["5"]]}, "gsm8k-100", r"(?s)line 2 .*field doc_id"),
        ({"doc_id": 0, "doc": "text", "resps": [["5"]]}, "gsm8k-100", r"(?s)line 2 .*field doc: "),
        ({"doc_id": 0, "doc": DUCKS, "resps": [[5]]}, "gsm8k-100", "log-likelihoods"),
        ({"doc_id": 0, "doc": DUCKS, "resps": [[{"text": "5"}]]}, "gsm8k-100", r"(?s)field resps\[0\]\[0\]: dict"),
        ({"doc_id": 0, "doc": DUCKS, "resps": [["5"], ["6"]]}, "gsm8k-100", "2 requests for one document"),
        ({**lm_eval_row(0, DUCKS, "5"), "arguments": [[["q"], "x", 3]]}, "gsm8k-100", "log-likelihoods"),
        ({**lm_eval_row(0, DUCKS, "5"), "exact_match": "yes"}, "gsm8k-100", "field exact_match: 'yes'"),
        ({"task_id": "HumanEval/7", "completion": 5}, "humaneval", r"(?s)line 2 .*field completion"),
        (HUMAN_EVAL, "gsm8k-100", "'HumanEval/7' with --bench gsm8k-100"),
        ({"question_id": 1, "output_list": ["a"], "graded_list": [True, False]}, "lcb-medium-55", "2 verdicts on 1"),
        ({"question_id": 1, "output_list": []}, "lcb-medium-55", "both are empty"),
        ({"results": {}, "configs": {}, "versions": {}}, "gsm8k-100", "(?s)summary of a run.*samples_TASK"),
        ({"id": 1, "text": "hello"}, "gsm8k-100", "(?s)its layout is not known.*fields id, text"),
    ],
)
def test_records_that_do_not_fit_are_named(row: dict[str, Any], bench: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text("\n" + json.dumps(row) + "\n")
    if not message:  # lm-eval writes an empty list for a reply that was lost: an empty reply
        assert [one.reply for one in read_samples(file, find([bench])[0])] == [""]
        return
    with pytest.raises(BenchError, match=message) as caught:
        read_samples(file, find([bench])[0])
    assert "s.jsonl line 2" in str(caught.value)


def test_results_of_evalplus_are_one_object(tmp_path: Path) -> None:
    file = tmp_path / "samples_eval_results.json"
    one = {"task_id": "HumanEval/0", "solution": "x = 1", "base_status": "pass", "plus_status": "fail"}
    file.write_text(json.dumps({"date": "2026", "hash": "h", "eval": {"HumanEval/0": [one]}}))
    assert [s.verdict for s in read_samples(file, find(["humaneval"])[0])] == [True]
    assert [s.verdict for s in read_samples(file, find(["humaneval-plus"])[0])] == [False]


def inspect_log(docs: list[Any], epochs: int = 1) -> dict[str, Any]:
    samples = [
        {
            "id": number,
            "epoch": epoch,
            "input": [{"role": "system", "content": "x"}, {"role": "user", "content": doc.prompt}],
            "target": "",
            "output": {
                "choices": [
                    {
                        "message": {
                            "role": "assistant",
                            "content": [
                                {"type": "reasoning", "reasoning": "hm"},
                                {"type": "text", "text": doc.reference},
                            ],
                        },
                        "stop_reason": "stop",
                    }
                ],
                "usage": {"input_tokens": 5, "output_tokens": 9, "total_tokens": 14},
            },
            "scores": {"match": {"value": "C"}},
        }
        for number, doc in enumerate(docs, 1)
        for epoch in range(1, epochs + 1)
    ]
    return {"version": 2, "status": "success", "eval": {"task": "t"}, "samples": samples}


def test_logs_of_inspect_are_matched_by_their_questions(tmp_path: Path) -> None:
    docs = find(["tiny-math"])[0].docs()[:6]
    whole = inspect_log(docs, epochs=2)
    plain, packed = tmp_path / "log.json", tmp_path / "log.eval"
    plain.write_text(json.dumps(whole))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({k: v for k, v in whole.items() if k != "samples"}))
        for one in whole["samples"]:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
    for file in (plain, packed):
        done = import_samples(file, "tiny-math", tmp_path / f"{file.suffix[1:]}.db")
        assert (done.summary.n, done.summary.score, done.compared, done.differences) == (12, 1.0, 12, ())
    with RunLog(tmp_path / "json.db", create=False) as log:
        first = log.samples(log.runs()[0])[0].sample
        assert (first.reasoning, first.reply_tokens, first.finish_reason) == ("hm", 9, "stop")
    whole["samples"][0]["input"] = "another question"
    plain.write_text(json.dumps(whole))
    with pytest.raises(BenchError, match=r"(?s)sample 1 .*0 rows of tiny-math have this question"):
        import_samples(plain, "tiny-math", tmp_path / "x.db")
    whole["samples"] = [{"id": 1, "epoch": 1, "input": "x", "output": {"choices": [{}]}}]
    plain.write_text(json.dumps(whole))
    with pytest.raises(BenchError, match=r"(?s)sample 1 .*field output.choices\[0\]"):
        import_samples(plain, "tiny-math", tmp_path / "x.db")


def test_a_sample_that_failed_at_the_recorder_is_not_a_wrong_answer(tmp_path: Path) -> None:
    whole = inspect_log(find(["tiny-math"])[0].docs()[:3])
    whole["samples"][1] |= {"error": {"message": "connection lost"}, "output": {"choices": []}}
    (tmp_path / "log.json").write_text(json.dumps(whole))
    done = import_samples(tmp_path / "log.json", "tiny-math", tmp_path / "r.db")
    assert (done.summary.causes, done.summary.score) == ({"correct": 2, "harness error": 1}, None)


def test_another_program_than_named_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "s.jsonl", [lm_eval_row(0, DUCKS, "#### 18")])
    command = ["import", str(file), "--bench", "gsm8k-100", "--log", str(tmp_path / "r.db")]
    wrong = CliRunner().invoke(log_group, [*command, "--from", "evalplus"])
    assert "use --from lm-eval" in str(wrong.exception)
    assert CliRunner().invoke(log_group, command).exit_code == 0


def test_a_gzipped_file_that_expands_without_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt") as handle:
        handle.writelines(json.dumps({"n": i}) + "\n" for i in range(2000))
    assert len(list(row_sources.read_file(file))) == 2000
    monkeypatch.setattr(expand, "LARGEST", 1 << 13)
    with pytest.raises(BenchError, match=r"(?s)expands to more than.*gunzip"):
        list(row_sources.read_file(file))


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "LARGEST_LINE", 100)
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        (tmp_path / name).write_text("[" + "1," * 200)
        with pytest.raises(BenchError, match="more than 100 characters"):
            list(row_sources.read_file(tmp_path / name))
