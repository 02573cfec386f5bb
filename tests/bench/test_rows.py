"""Rows: local files and hub data sets in order and pinned; examples and options in the random order of lm-eval."""

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from helpers.evaluation import run_model
from trimoe.bench.benches import gpqa_diamond
from trimoe.bench.catalog import find
from trimoe.bench.row_sources import iter_rows, read_file
from trimoe.bench.rows import choose, few_shot, render
from trimoe.bench.spec import BenchSpec, Dataset, Rows
from trimoe.bench.spec_file import load_spec, with_variants
from trimoe.cli.eval import eval_
from trimoe.errors import BenchError, MissingPrerequisite
from trimoe.model import tiny

PIN = "0" * 40


def data_set(**keys: Any) -> Dataset:
    return msgspec.convert({"hub": "o/n", "revision": PIN, "split": "test", "local": "f.jsonl", **keys}, Dataset)


def spec_of(**keys: Any) -> BenchSpec:
    base = msgspec.to_builtins(load_spec("gsm8k_100"))
    return msgspec.convert({**base, "few_shot": None, "variant": {}, "variant_about": {}, **keys}, BenchSpec)


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.json", "f.json.gz"])
def test_json_files_of_every_kind(name: str, tmp_path: Path) -> None:
    rows = [{"text": "one\u2028line"}, {"text": "two\nlines\r"}, {"text": ""}]
    text = (
        json.dumps(rows)
        if ".json" in name and ".jsonl" not in name
        else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert list(read_file(path)) == rows


@pytest.mark.parametrize("content", [b'{"a": 1}\n{"b"', b"\xff\xfe", b'{"a": 1} {"b": 2}\n'])
def test_broken_files_are_named(content: bytes, tmp_path: Path) -> None:
    for name, data in (("f.jsonl", content), ("f.jsonl.gz", gzip.compress(content)[:-9])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BenchError, match=name):
            list(read_file(tmp_path / name))


def test_a_missing_local_file_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"gsm8k/test\.jsonl\.gz not found"):
        find(["gsm8k-100"])[0].docs(tmp_path)


def test_rows_of_a_range_first_stride_and_ids(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text("".join(json.dumps({"id": i, "name": f"n{i}"}) + "\n" for i in range(20)))
    part = data_set(where={"id": [5, 14]}, rows=10)
    rows = list(iter_rows(part, tmp_path))
    assert [row["id"] for row in rows] == list(range(5, 15))

    def ids(**keys: Any) -> list[str]:
        return [doc_id for doc_id, _ in choose(rows, part, spec_of(**keys), None)]

    assert ids(rows={"first": 3}) == ["0", "1", "2"]
    assert ids(rows={"stride": 4, "first": 2}) == ["0", "4"]
    assert ids(rows={}) == [str(i) for i in range(10)]
    assert ids(rows={"first": 2}, id_field="name") == ["n5", "n6"]
    assert ids(rows={"ids": ["n9", "n6"]}, id_field="name") == ["n9", "n6"]
    with pytest.raises(BenchError, match="1 of 2 pinned rows"):
        ids(rows={"ids": ["n9", "n1"]}, id_field="name")
    with pytest.raises(BenchError, match="another number of rows"):
        choose(rows[1:], part, spec_of(rows={"first": 3}), None)


def test_changed_rows_are_refused(shared: Path, tmp_path: Path) -> None:
    """The pinned hash detects one changed word and two swapped rows; the number of rows detects neither."""
    source = list(read_file(shared / "benchmarks" / "ifeval" / "input_data.jsonl.gz"))
    folder = tmp_path / "ifeval"
    folder.mkdir()

    def docs(rows: list[Any]) -> int:
        with gzip.open(folder / "input_data.jsonl.gz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        return len(find(["ifeval-100"])[0].docs(tmp_path))

    assert docs(source) == 100
    for rows in (
        [{**source[0], "prompt": source[0]["prompt"] + " "}, *source[1:]],
        [source[1], source[0], *source[2:]],
    ):
        with pytest.raises(BenchError, match="not the pinned rows"):
            docs(rows)


def test_the_hub_path_gives_the_rows_of_a_data_set(tmp_path: Path) -> None:
    """A local folder in the hub's layout replaces the hub: the same loader without network."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"q": f"{split}{i}"}) + "\n" for i in range(3)))
    rows = list(iter_rows(data_set(hub=str(tmp_path)), None))
    assert [row["q"] for row in rows] == ["test0", "test1", "test2"]


@pytest.mark.parametrize(("gated", "remedy"), [(False, "connect to the hub"), (True, "HF_TOKEN")])
def test_an_unreachable_data_set_is_a_missing_prerequisite(gated: bool, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite) as error:
        list(iter_rows(data_set(hub=str(tmp_path / "absent"), gated=gated), None))
    assert remedy in error.value.remedy


def test_braces_in_a_row_stay() -> None:
    assert render("Q: {q}\nA:", {"q": "{x} and {{y}}"}) == "Q: {x} and {{y}}\nA:"


# ---------------------------------------------------------------- against lm-eval's own code


def test_examples_are_those_that_lm_eval_draws(shared: Path) -> None:
    from lm_eval.api.samplers import ContextSampler

    spec = load_spec("gsm8k_100")
    pool = list(read_file(shared / "benchmarks" / "gsm8k" / "train.jsonl.gz"))
    theirs = ContextSampler(pool, rnd=1234)
    for history in few_shot(spec, 20, shared / "benchmarks"):
        drawn = theirs.sample(5)
        assert [text for role, text in history if role == "assistant"] == [row["answer"] for row in drawn]
        assert [text for role, text in history if role == "user"] == [
            f"Question: {row['question']}\nAnswer:" for row in drawn
        ]


def gpqa_rows(count: int) -> list[dict[str, str]]:
    """Made-up rows in GPQA's schema, because the questions must not be published."""
    return [
        {
            "Question": f"Which of these is word {i}?",
            "Correct Answer": f" right {i} [title] of  them",
            "Incorrect Answer 1": f"wrong {i}a",
            "Incorrect Answer 2": f"wrong {i}b, with a comma",
            "Incorrect Answer 3": f"wrong {i}c\nsecond line",
        }
        for i in range(count)
    ]


def test_gpqa_prompts_are_lm_eval_s() -> None:
    """Options in lm-eval's order for seed 0, and its wording. (A full run of lm-eval 0.4.13 agreed, too.)"""
    from datasets import Dataset as Table
    from jinja2 import Template
    from lm_eval.tasks.gpqa.cot_zeroshot import utils

    rows = gpqa_rows(40)
    state = random.getstate()
    random.seed(0)
    theirs = utils.process_docs(Table.from_list(rows))
    random.setstate(state)
    template = Template(
        "What is the correct answer to this question:{{Question}}\nChoices:\n(A) {{choice1}}\n(B) {{choice2}}\n"
        "(C) {{choice3}}\n(D) {{choice4}}\nLet's think step by step: "
    )
    spec = with_variants(load_spec("gpqa_diamond"), ["brackets"])
    ours = gpqa_diamond.views(rows, spec)
    assert [render(spec.prompt.user, view.fields) for view in ours] == [template.render(row) for row in theirs]
    assert [f"({view.check['letter']})" for view in ours] == [row["answer"] for row in theirs]
    assert len({view.check["letter"] for view in ours}) == 4


def test_gpqa_cleaning_of_the_protocol_drops_brackets() -> None:
    assert gpqa_diamond.cleaned(" bicyclo[2.2.1] heptane [title] x  y", keep_brackets=False) == "bicyclo heptane. x y"
    assert gpqa_diamond.cleaned(" bicyclo[2.2.1] heptane", keep_brackets=True) == "bicyclo[2.2.1] heptane"
    assert gpqa_diamond.cleaned(None, keep_brackets=False) == " "


def test_gpqa_from_a_local_file(tmp_path: Path) -> None:
    folder = tmp_path / "gpqa"
    folder.mkdir()
    with (folder / "gpqa_diamond.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(gpqa_rows(1)[0]))
        writer.writeheader()
        writer.writerows(gpqa_rows(198))
    bench = find(["gpqa-diamond"])[0]
    docs = bench.docs(tmp_path)
    assert len(docs) == 198
    assert set(bench.judge([(doc.reference, "stop", doc) for doc in docs])) <= {
        bench.judge([(doc.reference, "stop", doc)])[0] for doc in docs
    }
    assert all(v.correct for v in bench.judge([(doc.reference, "stop", doc) for doc in docs]))
    assert find(["gpqa-diamond:smoke"])[0].docs(tmp_path) == docs[:10]


# ---------------------------------------------------------------- livecodebench, on rows we make


def lcb_row(number: str, **changes: Any) -> dict[str, Any]:
    return {
        "platform": "leetcode",
        "question_id": number,
        "difficulty": "medium",
        "question_content": f"Add the numbers of problem {number}.",
        "starter_code": "class Solution:\n    def addUp(self, a: List[int], b: int) -> int:\n        ",
        "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]),
        "private_test_cases": json.dumps([{"input": "[]\n-1", "output": "-1", "testtype": "functional"}]),
        **changes,
    }


def write_lcb(folder: Path, **changes: Any) -> None:
    """The six files of the data set with the pinned rows, and rows of other platforms between them."""
    ids = [name.rpartition("/")[2] for name in load_spec("lcb_medium_100").rows.ids]
    (folder / "livecodebench").mkdir()
    for place, file in enumerate(load_spec("lcb_medium_55").dataset[0].files):
        rows = [lcb_row(number, **changes) for number in sorted(ids[place::6])]
        rows.insert(0, {"platform": "atcoder", "question_id": "abc301_a"})
        (folder / "livecodebench" / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_livecodebench_rows_come_in_the_pinned_order(tmp_path: Path) -> None:
    write_lcb(tmp_path)
    docs = find(["lcb-medium-100"])[0].docs(tmp_path)
    assert [doc.doc_id for doc in docs] == list(load_spec("lcb_medium_100").rows.ids)
    assert find(["lcb-medium-55"])[0].docs(tmp_path) == docs[:55]
    assert docs[0].check == {"method": "addUp", "tests": [[[[1, 2], 3], 6]]}
    full = find(["lcb-medium-55:full"])[0].docs(tmp_path)
    assert full[0].check["tests"] == [[[[1, 2], 3], 6], [[[], -1], -1]]
    assert "class Solution" in docs[0].prompt


@pytest.mark.parametrize(
    "changes",
    [
        {"difficulty": "hard"},
        {"starter_code": ""},
        {"public_test_cases": "[]"},
        {"public_test_cases": json.dumps([{"input": "1", "output": "1", "testtype": "stdin"}])},
    ],
)
def test_livecodebench_rows_that_are_not_what_their_id_says(changes: dict[str, Any], tmp_path: Path) -> None:
    write_lcb(tmp_path, **changes)
    with pytest.raises(BenchError, match="not the pinned row"):
        find(["lcb-medium-55"])[0].docs(tmp_path)


# ---------------------------------------------------------------- every bench with local data


LOCAL = (
    *("arc-challenge", "gsm8k-100", "math-500-100", "aime-2024", "ifeval-100", "humaneval", "humaneval-plus"),
    *("multipl-e-100", "mbpp"),
)


@pytest.mark.parametrize("name", LOCAL)
def test_the_shared_data_folder_works(name: str, shared: Path) -> None:
    bench = find([name])[0]
    docs = bench.docs(shared / "benchmarks")
    assert len(docs) == len({doc.doc_id for doc in docs}) == bench.rows
    assert all(doc.prompt.strip() for doc in docs)
    smoke = find([f"{name}:smoke"])[0]
    rows = smoke.docs(shared / "benchmarks")
    by_id = {doc.doc_id: doc for doc in docs}
    assert len(rows) == smoke.rows < bench.rows
    assert all(by_id[doc.doc_id] == doc for doc in rows)


def test_strided_rows_are_another_selection(shared: Path) -> None:
    docs = find(["gsm8k-100:stride"])[0].docs(shared / "benchmarks")
    assert [doc.doc_id for doc in docs] == [str(i) for i in range(0, 1288, 13)]


def test_withheld_statements_are_scored_but_not_asked(shared: Path, tmp_path: Path) -> None:
    docs = find(["aime-2024"])[0].docs(shared / "benchmarks")
    assert {doc.doc_id for doc in docs} == {f"2024-{paper}-{n}" for paper in ("I", "II") for n in range(1, 16)}
    with pytest.raises(BenchError, match="30 of 30 rows have no question"):
        run_model(tiny.path(), ["aime-2024"], tmp_path / "runs.db", data=shared / "benchmarks")


def test_dry_run_of_all_benches(shared: Path) -> None:
    command = ["anything", "--bench", ",".join([*LOCAL, "gpqa-diamond"]), "--data", str(shared / "benchmarks")]
    result = CliRunner().invoke(eval_, [*command, "--smoke", "--dry-run", "--json"], standalone_mode=False)
    plans = {plan["bench"]: plan for plan in json.loads(result.stdout)["benches"]}
    assert result.return_value == 3
    assert plans.pop("gpqa-diamond:smoke")["error"]["subject"].endswith("gpqa_diamond.csv not found")
    assert set(plans) == {f"{name}:smoke" for name in LOCAL}
    for plan in plans.values():
        assert plan["error"] is None
        assert plan["rows"] >= 5
        assert plan["prompt_tokens_estimate"] > 0
        assert plan["first_chat"][-1]["content"] == plan["first_prompts"][0]
    assert "have no question" in plans["aime-2024:smoke"]["note"]
    assert [turn["role"] for turn in plans["gsm8k-100:smoke"]["first_chat"]] == ["user", "assistant"] * 5 + ["user"]
    text = CliRunner().invoke(eval_, [*command, "--smoke", "--dry-run"]).output
    assert "gsm8k-100:smoke: 10 rows, about " in text
    assert "remedy: copy it there" in text


def test_rows_rule_defaults_to_all() -> None:
    assert msgspec.to_builtins(Rows()) == {"first": None, "stride": None, "ids": ()}
