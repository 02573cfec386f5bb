"""Recorded real replies of a 20B model under lm-eval 0.4.11: our prompts, answers and verdicts equal the recorded ones.

A row that differs must be listed in EXCEPTIONS with its reason; at present none does.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimoe.bench.benches import humaneval, ifeval_100, lcb_medium_55
from trimoe.bench.catalog import find
from trimoe.cli.log import log_group
from trimoe.errors import BenchError, UsageError
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.recorded.importing import import_samples

# bench -> (file, recorded metric, number of samples, number correct)
RECORDS = {
    "arc-challenge": ("arc_challenge", "exact_match", 586, 560),
    "gsm8k-100": ("gsm8k_100", "exact_match", 50, 42),
    "math-500-100": ("math500_100", "math_verify", 50, 45),
    "aime-2024": ("aime24", "exact_match", 15, 12),
    "ifeval-100": ("ifeval_100", "prompt_level_strict_acc", 50, 43),
    "humaneval": ("humaneval", "pass@1", 82, 33),
}
WITH_PROMPTS = sorted(set(RECORDS) - {"aime-2024"})  # the record withholds the questions of AIME
EXCEPTIONS: dict[tuple[str, str], str] = {}  # (bench, doc_id) -> why our verdict differs


def file_of(shared: Path, name: str) -> Path:
    return shared / "reference" / "omnimergekit-data" / "eval_samples" / f"{name}.samples.jsonl.gz"


def rows_of(shared: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(file_of(shared, name), "rt", encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_every_recorded_verdict_is_ours(name: str, shared: Path, tmp_path: Path) -> None:
    file, _, count, correct = RECORDS[name]
    done = import_samples(file_of(shared, file), name, tmp_path / "runs.db")
    assert {(name, d.doc_id) for d in done.differences} == {key for key in EXCEPTIONS if key[0] == name}
    assert (done.compared, done.summary.n) == (count, count)
    assert done.summary.correct == correct - sum(d.recorded for d in done.differences) + sum(
        d.ours for d in done.differences
    )


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_every_prompt_is_the_recorded_one(name: str, shared: Path) -> None:
    bench = find([name])[0]
    docs = {doc.doc_id: doc for doc in bench.docs(shared / "benchmarks")}
    for row in rows_of(shared, RECORDS[name][0]):
        sent = json.loads(row["arguments"]["gen_args_0"]["arg_0"][0])
        assert docs[str(row["doc_id"])].chat() == [{key: turn[key] for key in ("role", "content")} for turn in sent]
        how = row["arguments"]["gen_args_0"]["arg_1"]
        assert (tuple(how["until"]), how["max_gen_toks"], how["temperature"], how["top_p"], how["top_k"]) == (
            bench.stops,
            bench.max_new_tokens,
            0.0,
            1.0,
            0,
        )


@pytest.mark.parametrize("name", RECORDS)
def test_recorded_rows_are_the_rows_of_the_data_set(name: str, shared: Path) -> None:
    bench = find([name])[0]
    ours = {doc.doc_id: doc for doc in bench.docs(shared / "benchmarks")}
    for row in rows_of(shared, RECORDS[name][0]):
        assert bench.record is not None
        recorded = bench.record(str(row["doc_id"]), row["doc"])
        here = ours[row["doc"]["ID"] if name == "aime-2024" else recorded.doc_id]
        assert recorded.check == here.check


def test_recorded_gsm8k_answers_are_ours(shared: Path) -> None:
    rows = [row for row in rows_of(shared, "gsm8k_100") if row["filter"] == "flexible-extract"]
    assert len(rows) == 50
    extract = find(["gsm8k-100"])[0].extract
    assert [extract(row["resps"][0][0]) for row in rows] == [row["filtered_resps"][0] for row in rows]


def test_recorded_humaneval_programs_are_ours(shared: Path) -> None:
    bench = find(["humaneval"])[0]
    assert bench.record is not None
    answered = [row for row in rows_of(shared, "humaneval") if row["resps"][0][0]]
    assert len(answered) == 33
    for row in answered:
        doc = bench.record(str(row["doc_id"]), row["doc"])
        assert humaneval.candidate(row["resps"][0][0], doc) == row["filtered_resps"][0][0]


def test_recorded_livecodebench_programs_are_ours(shared: Path) -> None:
    rows = rows_of(shared, "lcb_medium_55")
    assert len(rows) == 28
    assert [lcb_medium_55.between_fences(row["completion"]) for row in rows] == [row["cleaned"] for row in rows]


@pytest.mark.slow
def test_recorded_ifeval_metrics_are_ours(shared: Path) -> None:
    """All four metrics, by instruction. A random letter (key 1129) could make the loose ones differ, but does not."""
    bench = find(["ifeval-100"])[0]
    for row in rows_of(shared, "ifeval_100"):
        assert bench.record is not None
        found = ifeval_100.obedience(row["resps"][0][0], bench.record("0", row["doc"]).check)
        assert list(found.strict) == row["inst_level_strict_acc"], row["doc_id"]
        assert list(found.loose) == row["inst_level_loose_acc"], row["doc_id"]


def test_livecodebench_without_its_tests_is_kept_and_not_scored(shared: Path, tmp_path: Path) -> None:
    log_path = tmp_path / "runs.db"
    done = import_samples(file_of(shared, "lcb_medium_55"), "lcb-medium-55", log_path)
    assert (done.summary.n, done.summary.score, done.compared) == (28, None, 0)
    with RunLog(log_path, create=False) as log:
        stored = log.samples(log.runs()[0])
        assert all(s.verdict.cause == "harness error" and s.verdict.extracted for s in stored)
        assert stored[0].sample.reply_tokens == 530
        assert log.verify() == []


def test_import_and_export_from_the_command_line(shared: Path, tmp_path: Path) -> None:
    log_path, runner = str(tmp_path / "runs.db"), CliRunner()
    command = [
        "import",
        str(file_of(shared, "gsm8k_100")),
        "--from",
        "lm-eval",
        "--bench",
        "gsm8k-100",
        "--log",
        log_path,
    ]
    first = runner.invoke(log_group, [*command, "--json"])
    assert json.loads(first.stdout)["recorded"] == {
        "metric": "exact_match,flexible-extract",
        "compared": 50,
        "agree": 50,
        "differ": [],
    }
    assert runner.invoke(log_group, command).output.startswith("gsm8k-100: 50 samples as gsm8k_100: 42 correct")
    exported = [json.loads(line) for line in runner.invoke(log_group, ["export", log_path]).stdout.splitlines()]
    recorded = {str(r["doc_id"]): r for r in rows_of(shared, "gsm8k_100") if r["filter"] == "flexible-extract"}
    assert [row["doc_id"] for row in exported] == list(recorded)
    for row in exported:
        assert row["bench"] == "gsm8k-100"
        assert row["correct"] == bool(recorded[row["doc_id"]]["exact_match"])
        assert row["cause"] == ("correct" if row["correct"] else "wrong")
        assert row["reply_tokens"] is None  # lm-eval records no counts, so they are unknown
        assert len(json.loads(row["prompt"])) == 11
    assert runner.invoke(log_group, ["verify", log_path]).exit_code == 0


def test_empty_replies_are_misses_with_their_cause(shared: Path, tmp_path: Path) -> None:
    done = import_samples(file_of(shared, "aime24"), "aime-2024", tmp_path / "runs.db")
    assert done.summary.causes == {"correct": 12, "empty": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no samples"),
        ('{"doc_id": 0, "doc": {}}\n', "line 1 is not a recorded sample"),
        ('{"doc_id": 0, "resps": [["5"]], "doc": {"question": "?", "answer": "#### 5"}}\nnot json\n', "not readable"),
        ('{"doc_id": 0, "resps": [["5"]], "doc": {"text": "other"}}\n', "not a row of gsm8k-100"),
        ('{"doc_id": 0, "resps": [["5"]], "doc": null}\n' * 2, ""),
        (
            '{"doc_id": 0, "resps": [["5"]], "doc": {}}\n{"doc_id": 0, "resps": [["6"]], "doc": {}}\n',
            "different replies",
        ),
    ],
)
def test_files_that_are_no_records(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(text)
    if not message:
        assert import_samples(file, "gsm8k-100", tmp_path / "runs.db").summary.n == 1
        return
    with pytest.raises(BenchError, match=message):
        import_samples(file, "gsm8k-100", tmp_path / "runs.db")
    assert not (tmp_path / "runs.db").exists()


def test_unknown_bench(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UsageError):
        import_samples(tmp_path / "samples.jsonl", "gsm8k", tmp_path / "runs.db")
