"""A paused run is marked wherever its score is shown, until it is continued."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.view_server import put
from trimoe.bench.bench import Verdict
from trimoe.cli.attribute import attribute
from trimoe.cli.audit import audit as audit_command
from trimoe.cli.compare import compare
from trimoe.cli.ladder import ladder
from trimoe.cli.log import log_group
from trimoe.evaluate.log.export import write_lm_eval
from trimoe.evaluate.log.marks import CONCLUDED, MADE, OVERRULED, marks_of_events
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.evaluate.log.summary import Evaluation, summarize
from trimoe.publish.numbers import QUERIES, Sources
from trimoe.report.board import make_board
from trimoe.report.board_page import render_board
from trimoe.view.catalog import Catalog

SHOWN = "paused by guard zero, no valid score"
PAUSE = {"guard": "zero", "expected": "one", "actual": "none of 20", "samples": []}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A base and two variants; the variant `stopped` is paused."""
    path = tmp_path / "runs.db"
    replies = [f"Six times seven and {i} more is {42 + i}: {i} is added to the product at the end." for i in range(20)]
    put(path, "base", "1" * 15 + "w" * 5, "math", texts=replies)
    put(path, "stopped", "w" * 20, "math", texts=replies)
    put(path, "whole", "1" * 14 + "w" * 6, "math", texts=replies)
    with RunLog(path) as opened:
        (run,) = [run for run in opened.runs() if run.name == "stopped"]
        opened.event(run, "asking", missing=20, of=100)
        opened.event(run, "paused", **PAUSE)
    return path


def said(command: Any, *arguments: Path | str) -> str:
    return str(CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False).stdout)


def test_compare_shows_it_beside_the_score_and_the_difference(log: Path) -> None:
    text = said(compare, log)
    assert re.search(r"stopped\s+20\s+0\.0 !", text)
    assert "-75.0 !" in text
    assert f"! stopped on math: {SHOWN}" in text
    assert "75.0 !" not in text.replace("-75.0 !", "")
    assert f"! stopped on math: {SHOWN}" in said(compare, log, "--format", "markdown")
    assert SHOWN in said(compare, log, "--format", "csv")
    rows = {row["name"]: row for row in json.loads(said(compare, log, "--json"))["rows"]}
    assert (rows["stopped"]["marks"], rows["whole"]["marks"]) == ([SHOWN], [])


def test_a_paused_base_marks_every_difference(log: Path) -> None:
    text = said(compare, log, "--base", "stopped")
    assert "+75.0 !" in text
    assert "+70.0 !" in text
    rows = {row["name"]: row for row in json.loads(said(compare, log, "--base", "stopped", "--json"))["rows"]}
    assert (rows["whole"]["marks"], rows["whole"]["base_marks"]) == ([], [SHOWN])
    sources = Sources([log], "stopped", ["whole"], {})
    assert QUERIES["difference"](sources, {"name": "whole", "bench": "math"}).endswith(" !")


def test_the_audit_refuses_it(log: Path) -> None:
    assert f"it stopped and was not continued: {SHOWN}" in said(audit_command, log)
    body = json.loads(said(audit_command, log, "--json"))
    (one,) = [run for run in body["runs"] if "PAUSED" in run["flags"]]
    assert (one["name"], one["verdict"]) == ("stopped", "refused")


def test_the_report_and_the_viewer_show_it(log: Path) -> None:
    html = render_board(make_board([log], "base", ""))
    assert html.count(f"! {SHOWN}") >= 1
    assert "0.0 !" in html  # in the chart
    assert {run.run.name: run.marks for run in Catalog([log]).all()} == {"base": (), "stopped": (SHOWN,), "whole": ()}


def test_a_card_shows_it(log: Path) -> None:
    sources = Sources([log], "base", ["stopped", "whole"], {})
    texts = {name: QUERIES["score"](sources, {"name": name, "bench": "math"}) for name in ("base", "stopped")}
    assert texts == {"base": "75.00", "stopped": "0.00 !"}
    assert any(SHOWN in note for note in sources.comparison.notes)


def test_quality_against_size_shows_it(log: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("model,tier,size_gb,run\na,big,2,base\na,small,1,stopped\n")
    text = said(ladder, table, log, "--bench", "math", "--under", "1.5GB")
    assert "0.00 !" in text
    assert f"! a small: {SHOWN}" in text
    assert "0.00 % ! (measured)" in text
    head, *lines = said(ladder, table, log, "--bench", "math", "--format", "csv").splitlines()
    marks = [line.split(",", 8)[8] for line in lines]
    assert (head.split(",")[-1], sorted(marks)) == ("marks", ["", f'"{SHOWN}"'])
    points = json.loads(said(ladder, table, log, "--bench", "math", "--json"))["points"]
    assert [point["marks"] for point in points] == [[], [SHOWN]]


def test_attribution_shows_it(log: Path) -> None:
    text = said(attribute, log, "--chain", "base,stopped,whole")
    assert "base 15, stopped 0 !, whole 14" in text
    assert f"! stopped: {SHOWN}" in text
    body = json.loads(said(attribute, log, "--chain", "base,stopped,whole", "--json"))
    assert body["benches"][0]["marks"] == [[], [SHOWN], []]


def test_exports_and_summaries_carry_it(log: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in said(log_group, "export", log).splitlines()]
    assert {row["name"]: row["run_marks"] for row in rows} == {"base": [], "stopped": [SHOWN], "whole": []}
    with RunLog(log, create=False) as opened:
        files = write_lm_eval(opened, tmp_path / "out")
        summaries = tuple(summarize(opened, run) for run in opened.runs())
    first = json.loads(files[1].read_text().splitlines()[0])
    assert first["trimoe"]["run_marks"] == [SHOWN]
    assert "0.0 % !" in repr(Evaluation(log, summaries))


@pytest.mark.parametrize(
    ("events", "paused"),
    [
        ([("asking", {}), ("paused", PAUSE)], True),
        ([("asking", {}), ("paused", {"server": "another model"})], True),
        ([("asking", {}), ("paused", PAUSE), ("rescoring", {})], True),  # nothing was asked since
        ([("asking", {}), ("paused", PAUSE), ("asking", {})], False),
        ([("asking", {}), ("paused", PAUSE), ("asking", {}), ("paused", PAUSE)], True),
        ([("generating", {}), ("paused", PAUSE), (OVERRULED, {"guard": "zero"})], False),
        ([("generating", {}), ("paused", PAUSE), (CONCLUDED, {})], False),
        ([("asking", {})], False),
    ],
)
def test_a_pause_ends_when_the_run_is_continued(events: list[tuple[str, dict[str, Any]]], paused: bool) -> None:
    assert ("PAUSED" in [mark.flag for mark in marks_of_events(events)]) is paused
    assert {kind for kind, _ in events} & {*MADE}


def test_a_result_stored_before_the_pause_is_marked_too(log: Path) -> None:
    with RunLog(log) as opened:
        (run,) = [run for run in opened.runs() if run.name == "stopped"]
        opened.add(run, [(Sample("late", 99, "q", "Six.", "stop", 1, 1), Verdict(True, "correct"))], 1)
        assert SHOWN in summarize(opened, run).marks
