"""Runs apart from generation: stop texts, earlier turns, benches in parts, rescoring of imports."""

import gzip
import json
from pathlib import Path

import pytest

from helpers.evaluation import rescored, run_model
from trimoe.bench.bench import Doc, Verdict
from trimoe.bench.catalog import find
from trimoe.evaluate.guards import NAMES
from trimoe.evaluate.intake import cut_at_stops
from trimoe.evaluate.log.records import UNCOUNTED, Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import summarize
from trimoe.evaluate.recorded.importing import import_samples
from trimoe.model.generate import Generator


@pytest.mark.parametrize(
    ("text", "kept", "finish"),
    [
        ("It is 4.\nQuestion: and", "It is 4.\n", "stop"),
        ("a</s>Question:", "a", "stop"),
        ("Question:", "", "stop"),
        ("no stop", "no stop", "length"),
    ],
)
def test_a_reply_ends_before_its_first_stop_text(text: str, kept: str, finish: str) -> None:
    stops = find(["gsm8k-100"])[0].stops
    whole = Sample("0", 0, "q", text, "length", 3, 9)
    assert cut_at_stops(whole, stops) == Sample("0", 0, "q", kept, finish, 3, 9)
    assert cut_at_stops(whole, ()) == whole
    assert cut_at_stops(whole, stops, "beyond a stop").marks == (() if kept == text else ("beyond a stop",))


def test_earlier_turns_are_rendered_by_the_chat_template(model_dir: Path) -> None:
    model = Generator(model_dir)
    alone, after = model.encode("b"), model.encode("b", (("user", "x"), ("assistant", "y")))
    assert after[-len(alone) + 1 :] == alone[1:]
    assert len(after) > len(alone)


def test_what_is_logged_of_a_conversation() -> None:
    assert Doc("0", "p", "", {}).asked() == "p"
    asked = json.loads(Doc("0", "p", "", {}, (("user", "a"), ("assistant", "b"))).asked())
    assert [(turn["role"], turn["content"]) for turn in asked] == [("user", "a"), ("assistant", "b"), ("user", "p")]


def test_a_smoke_variant_is_a_run_of_its_own(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    (small,) = run_model(model_dir, ["tiny-story:smoke"], path, name="m", ignore_guards=NAMES)
    (whole,) = run_model(model_dir, ["tiny-story"], path, name="m", limit=3, ignore_guards=NAMES)
    assert (small.bench, small.n, whole.bench) == ("tiny-story:smoke", 10, "tiny-story")
    assert small.run_id != whole.run_id
    assert {r.bench for r in rescored(path)} == {"tiny-story:smoke", "tiny-story"}


def test_a_bench_in_parts_is_the_mean_of_its_parts(tmp_path: Path) -> None:
    """Languages of unequal size: 1 of 1 and 1 of 3 make 66.7 %, not 50 %. A part that was not run leaves no score."""
    docs = [Doc(f"rs::{i}", "p", "", {"language": "rs"}) for i in range(3)] + [
        Doc("js::0", "p", "", {"language": "js"})
    ]
    spec = find(["multipl-e-100"])[0].spec(docs)
    with RunLog(tmp_path / "runs.db") as log:
        run = log.start("m", "multipl-e-100", spec, "model", {}, {})
        right, wrong, unknown = Verdict(True, "correct"), Verdict(False, "wrong"), Verdict(None, "harness error")

        def scored(verdicts: list[Verdict]) -> tuple[float | None, dict[str, float | None]]:
            samples = [Sample(d.doc_id, i, "p", "r", "", UNCOUNTED, UNCOUNTED) for i, d in enumerate(docs)]
            log.add(run, list(zip(samples, verdicts, strict=True)), 1)
            summary = summarize(log, run)
            return summary.score, summary.parts

        assert scored([right, wrong, wrong, right]) == (pytest.approx(2 / 3), {"rs": pytest.approx(1 / 3), "js": 1.0})
        assert scored([right, wrong, wrong, unknown]) == (None, {"rs": pytest.approx(1 / 3), "js": None})


def test_imported_runs_stay_as_they_are_without_data(tmp_path: Path, shared: Path) -> None:
    file, path = tmp_path / "s.jsonl", tmp_path / "runs.db"
    with gzip.open(shared / "benchmarks" / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as handle:
        first = json.loads(next(handle))
    row = {"doc_id": 0, "doc": first, "resps": [["It is 18"]], "exact_match": 1.0}
    file.write_text(json.dumps({**row, "filter": "flexible-extract"}) + "\n")
    done = import_samples(file, "gsm8k-100", path)
    assert (done.compared, done.differences, done.summary.score) == (1, (), 1.0)
    assert import_samples(file, "gsm8k-100", path).summary == done.summary
    assert rescored(path) == [done.summary]
    (again,) = rescored(path, shared / "benchmarks")
    assert (again.n, again.correct) == (1, 1)
    row["exact_match"] = 0.0
    file.write_text(json.dumps({**row, "filter": "flexible-extract"}) + "\n")
    changed = import_samples(file, "gsm8k-100", path, name="other")
    assert [(d.doc_id, d.recorded, d.ours) for d in changed.differences] == [("0", False, True)]
    with RunLog(path, create=False) as log:
        assert log.verify() == []
        assert {run.name for run in log.runs()} == {"s", "other"}
