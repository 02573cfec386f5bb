"""The report over run logs: its numbers, its claims, its refusals, and that it is self-contained."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from helpers.view_server import put
from trimoe.cli.main import main
from trimoe.judge.compare import compare
from trimoe.report import words
from trimoe.report.board import make_board
from trimoe.report.board_page import render_board


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    replies = [f"Six times seven and {i} more is {42 + i}: {i} is added to the product at the end." for i in range(60)]
    silent = [*replies[:40], *([""] * 20)]
    for bench in ("math", "code"):
        put(path, "base", "1" * 50 + "w" * 10, bench, texts=replies)
        put(path, "same", "1" * 49 + "w" * 10 + "1", bench, texts=replies)
        put(path, "worse", "1" * 20 + "wl" * 20, bench, texts=replies)
    put(path, "other", "1" * 60, "math", texts=replies, engine="vllm")
    put(path, "silent", "1" * 40 + "e" * 20, "math", texts=silent)
    return path


def test_every_row_of_the_comparison_is_on_the_page(log: Path) -> None:
    html = render_board(make_board([log], "base", ""))
    cells = unescape(re.sub(r"<[^>]*>", " ", html))
    for row in compare(log, base="base", side_by_side=True).rows:
        assert words.percent(row.score.accuracy) in cells
        assert f"{words.percent(row.score.low)}–{words.percent(row.score.high)}" in cells
        if (change := row.change) is not None:
            assert words.points(change.difference) in cells
            assert f"{change.lost} / {change.gained}" in cells
            assert words.probability(change.p_holm) in cells


def test_it_claims_what_the_test_shows_and_ignores_refused_runs(log: Path) -> None:
    board = make_board([log], "base", "")
    assert {(line.row.name, line.row.bench) for line in board.claims("worse")} == {("worse", "math"), ("worse", "code")}
    assert {line.row.name for line in board.claims("not shown")} == {"same"}
    assert [line.row.name for line in board.verdicts("refused")] == ["silent"]  # a third of its replies is empty
    html = render_board(board)
    lead = html[: html.index("<ul")]
    assert "A loss is shown for worse on math" in lead
    assert "silent" not in lead.partition("</h1>")[2]
    assert "is refused by the audit" in html


def test_runs_under_other_conditions_have_separate_groups(log: Path) -> None:
    groups = [(g.bench, g.settings, [line.row.name for line in g.lines]) for g in make_board([log], "base", "").groups]
    assert groups == [
        ("math", "engine not recorded", ["base", "same", "worse", "silent"]),
        ("math", "engine vllm", ["other"]),
        ("code", "", ["base", "same", "worse"]),
    ]
    other = make_board([log], "base", "").groups[1]
    assert other.base is None
    assert other.lines[0].change is None


def test_it_is_self_contained_and_reproducible(log: Path) -> None:
    board = make_board([log], "base", "")
    html = render_board(board)
    assert html == render_board(make_board([log], "base", ""))
    assert "http" not in html
    assert "<script" not in html
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_the_command(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(log), "-o", str(out), "--base", "base", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"] == 8
    assert said["refused"] == ["silent on math"]
    assert main(["report", str(log), "-o", str(out)]) == 0  # an older report is replaced
    foreign = tmp_path / "mine.html"
    foreign.write_text("<p>written by hand</p>")
    assert main(["report", str(log), "-o", str(foreign)]) == 3
    assert foreign.read_text() == "<p>written by hand</p>"
    assert main(["report", str(log), "-o", str(tmp_path / "report.pdf")]) == 2
    assert main(["report", str(log), "-o", str(out), "--bench", "math"]) == 2
    assert main(["report", str(log), "-o", str(out), "--by", "reap"]) == 2
    assert main(["report", str(log), "-o", str(out), "--base", "nobody"]) == 2


def test_a_ladder_and_heatmaps_come_with_their_inputs(log: Path, tmp_path: Path) -> None:
    import numpy as np

    from trimoe.calibrate.stats.expert_stats import ExpertStats

    files, stats, out = tmp_path / "ladder.csv", tmp_path / "stats.safetensors", tmp_path / "report.html"
    files.write_text("model,tier,size_gb,run,score,n,source\nours,Q4,9,same,,,\nrival,Q6,10,,81.5,164,its card\n")
    reap = np.arange(2 * 3 * 8, dtype=np.float64).reshape(2, 3, 8)
    made = ExpertStats(("code", "math"), {"reap_sum": reap, "tc": np.ones_like(reap)}, {})
    made.save(stats)
    arguments = ["report", str(log), "-o", str(out), "--ladder", str(files), "--bench", "math", "--stats", str(stats)]
    assert main([*arguments, "--by", "reap"]) == 0
    html = out.read_text()
    assert "81.5" in html
    assert "its card" in html
    assert html.count('class="heat"') == 2


def test_many_losses_are_summed_up_per_model(tmp_path: Path) -> None:
    """Above six comparisons, a sentence names each model once, with its largest difference."""
    log = tmp_path / "runs.db"
    replies = [f"Six times seven and {i} more is {42 + i}: {i} is added to the product at the end." for i in range(100)]
    for i in range(4):
        put(log, "base", "1" * 100, f"b{i}", texts=replies)
        put(log, "bad", "1" * (70 - 10 * i) + "w" * (30 + 10 * i), f"b{i}", texts=replies)
        put(log, "worse", "w" * (40 + 10 * i) + "1" * (60 - 10 * i), f"b{i}", texts=replies)
        put(log, "same", "1" * 100, f"b{i}", texts=replies)
        put(log, "equal", "1" * 100, f"b{i}", texts=replies)
    board = make_board([log], "base", "")
    lead = render_board(board).partition("</h1>")[2].partition("<ul")[0]
    assert "A loss is shown for bad on 4 benches, largest −60.0 points (b3) and worse on 4 benches" in lead
    assert "No difference is shown in 8 more comparisons" in lead
    assert "does not prove equality" in lead
