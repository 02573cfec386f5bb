"""Comparisons read from a log: pairs, flips, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimoe.bench.bench import Verdict
from trimoe.cli.compare import compare
from trimoe.errors import Refused, RunLogError, UsageError
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.compare import against_mean
from trimoe.judge.compare import compare as compare_runs
from trimoe.judge.statistics.paired import mcnemar_exact, wilson

VERDICTS = {"1": Verdict(True, "correct"), "0": Verdict(False, "wrong"), "?": Verdict(None, "harness error")}


def put(
    log: RunLog, name: str, answers: str, bench: str = "b", spec: dict[str, Any] | None = None, **sampler: Any
) -> None:
    """A run whose row i is right (1), wrong (0) or not scored (?)."""
    run = log.start(name, bench, spec or {"name": bench}, f"hash of {name}", sampler, {})
    log.add(run, [(Sample(f"d{i}", i, "", "", "stop", 1, 1), VERDICTS[a]) for i, a in enumerate(answers)], 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    with RunLog(path) as log:
        put(log, "base", "1111111100")
        put(log, "cut", "1111000?10")
        put(log, "cut", "01", bench="only-cut")
        put(log, "same", "1111111100")
    return path


def test_pairs_and_flips(path: Path) -> None:
    comparison = compare_runs(path, base="base", against=["cut", "same"])
    base, cut, same = comparison.rows
    assert (base.score.n, base.score.correct, base.score.accuracy, base.change) == (10, 8, 0.8, None)
    assert (base.score.low, base.score.high) == wilson(8, 10)
    assert (cut.score.n, cut.score.correct, cut.score.unscored) == (9, 5, 1)
    change = cut.change
    assert change is not None
    assert (change.pairs, change.lost, change.gained) == (9, 3, 1)
    assert change.difference == pytest.approx(-2 / 9)
    assert change.low < -2 / 9
    assert change.p == mcnemar_exact(3, 1)
    assert change.p_holm == min(1.0, 2 * mcnemar_exact(3, 1))
    assert same.change is not None
    assert (same.change.lost, same.change.gained, same.change.difference, same.change.p) == (0, 0, 0.0, 1.0)
    assert cut.score.causes == {"correct": 5, "harness error": 1, "wrong": 4}


def test_a_comparison_as_a_table_for_notebooks(path: Path) -> None:
    comparison = compare_runs(str(path), base="base")
    assert repr(comparison) == "Comparison(base='base', 2 models against it, 1 benches)"
    frame = comparison.to_pandas()
    assert list(frame["model"]) == ["base", "cut", "same"]
    assert list(frame["lost"]) == [0, 3, 0]
    assert list(frame["score"]) == [row.score.accuracy for row in comparison.rows]
    page = comparison._repr_html_()
    assert page.count("<tr>") == 4
    assert "3/1" in page


def test_defaults_are_the_first_name_against_all(path: Path) -> None:
    comparison = compare_runs(path)
    assert (comparison.base, comparison.names) == ("base", ("cut", "same"))


def test_refusals(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run named none"):
        compare_runs(path, base="none")
    with pytest.raises(UsageError, match="no run named none"):
        compare_runs(path, base="base", against=["none"])
    with RunLog(path) as log:
        put(log, "new", "11", spec={"name": "b", "version": 2})
        put(log, "hot", "11", temperature=1)
    with pytest.raises(Refused, match="differ in bench") as error:
        compare_runs(path, base="base", against=["new"])
    assert "version" in error.value.actual
    with pytest.raises(Refused, match="engine, sampler or stack"):
        compare_runs(path, base="base", against=["hot"])
    RunLog(tmp_path / "empty.db").close()
    with pytest.raises(RunLogError, match="no runs"):
        compare_runs(tmp_path / "empty.db")
    with pytest.raises(RunLogError, match="not found"):
        compare_runs(tmp_path / "missing.db")


def test_command_line(path: Path) -> None:
    runner = CliRunner()
    text = runner.invoke(compare, [str(path)]).stdout
    assert "3/1" in text
    assert "-22.2" in text
    assert "were not scored" in text
    data = json.loads(runner.invoke(compare, [str(path), "--base", "base", "same", "--json"]).stdout)
    assert [row["name"] for row in data["rows"]] == ["base", "same"]


def test_against_the_mean_of_several(path: Path) -> None:
    # items: right in base; in cut 1111000?10; in same 1111111100. Item 7 is not scored in cut and counts for nobody.
    found = against_mean(path, "base", ["cut", "same"], ["b"])
    assert (found.pairs, found.gained, found.lost) == (9, 3, 1)
    assert found.difference == pytest.approx((3 * 0.5 - 0.5) / 9)
    assert found.p == pytest.approx(10 / 16)
    with pytest.raises(UsageError, match="no run of same on only-cut"):
        against_mean(path, "cut", ["same"], ["only-cut"])


def test_one_run_alone_says_what_is_missing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "one.db") as log:
        put(log, "base", "101")
    for form in ("text", "markdown"):
        done = CliRunner().invoke(compare, [str(tmp_path / "one.db"), "--format", form])
        assert done.exit_code == 0
        text = " ".join(done.stdout.split())
        assert "Nothing to compare with base" in text
        assert "trimoe eval MODEL" in text
