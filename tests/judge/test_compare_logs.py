"""Comparisons over several logs, side by side, with clusters and causes, in every form."""

import csv
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trimoe.bench.bench import Verdict
from trimoe.cli.compare import compare
from trimoe.cli.main import main
from trimoe.errors import Refused, RunLogError
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.compare import compare as compare_runs
from trimoe.judge.statistics.bootstrap import paired_bootstrap
from trimoe.judge.statistics.paired import mcnemar_exact, paired_difference, sign_flip_exact, wilson
from trimoe.judge.statistics.power import detectable

CAUSES: dict[str, Any] = {
    "1": "correct",
    "w": "wrong",
    "e": "empty",
    "l": "loop",
    "t": "truncated (cap)",
    "?": "harness error",
}


def put(
    path: Path,
    name: str,
    answers: str,
    bench: str = "b",
    ids: Sequence[str] | None = None,
    spec: dict[str, Any] | None = None,
    **sampler: Any,
) -> None:
    """A run whose row i was right (1) or missed by a cause."""
    with RunLog(path) as log:
        run = log.start(name, bench, {"name": bench, **(spec or {})}, f"hash of {name}", sampler, {})
        rows = [
            (
                Sample(ids[i] if ids else f"d{i}", i, "", "", "stop", 1, 1),
                Verdict(None if a == "?" else a == "1", CAUSES[a]),
            )
            for i, a in enumerate(answers)
        ]
        log.add(run, rows, 1)


def test_a_loss_by_truncation_is_not_a_loss_of_knowledge(tmp_path: Path) -> None:
    put(tmp_path / "r.db", "base", "1" * 20 + "el" + "w" * 8)
    put(tmp_path / "r.db", "cut", "1" * 14 + "wwttel" + "11" + "w" * 8)
    _, cut = compare_runs(tmp_path / "r.db").rows
    assert cut.change is not None
    flips = cut.change.flips
    assert flips.lost == tuple(
        zip(
            [f"d{i}" for i in range(14, 20)],
            ["wrong", "wrong", "truncated (cap)", "truncated (cap)", "empty", "loop"],
            strict=True,
        )
    )
    assert flips.gained == (("d20", "empty"), ("d21", "loop"))
    assert flips.lost_as == {"empty": 1, "loop": 1, "cut": 2, "normal": 2}
    drawn = paired_bootstrap(enumerate([-1] * 6 + [1] * 2 + [0] * 22))
    assert cut.detail is not None
    assert (cut.detail.bootstrap_low, cut.detail.bootstrap_high) == (drawn.low, drawn.high)
    assert cut.detail.detectable == detectable(30, 8 / 30)
    text = CliRunner().invoke(compare, [str(tmp_path / "r.db"), "--flips"]).stdout
    assert "2 of 6 look like lost knowledge" in text
    assert "- b cut d16: lost (truncated (cap))" in text
    assert "+ b cut d20: gained (empty)" in text


def test_problems_are_the_units_where_a_bench_asks_them_in_several_languages(tmp_path: Path) -> None:
    ids = [f"{part}::p{i}" for part in ("rs", "java", "js") for i in range(30)]
    macro = {"average": "macro"}
    put(tmp_path / "r.db", "base", "1" * 90, ids=ids, spec=macro)
    put(tmp_path / "r.db", "cut", ("w" * 4 + "1" * 26) * 3, ids=ids, spec=macro)
    base, cut = compare_runs(tmp_path / "r.db").rows
    change = cut.change
    assert change is not None
    assert (change.lost, change.pairs, cut.score.accuracy) == (12, 90, pytest.approx(26 / 30))
    assert change.p == sign_flip_exact([-3] * 4) == 0.125
    assert mcnemar_exact(12, 0) < 0.001  # what twelve independent losses would claim
    assert cut.detail is not None
    assert cut.detail.units == 30
    # the interval of thirty problems of which four were lost, and not of ninety items
    assert (change.low, change.high) == pytest.approx(paired_difference(30, 4, 0)[1:], abs=0.01)
    independent = compare_runs(tmp_path / "r.db").rows[0]
    assert independent == base
    put(tmp_path / "flat.db", "base", "1" * 90)
    put(tmp_path / "flat.db", "cut", ("w" * 4 + "1" * 26) * 3)
    flat = compare_runs(tmp_path / "flat.db").rows[1]
    assert cut.score.high - cut.score.low > 1.4 * (flat.score.high - flat.score.low)


def test_repeated_items_that_are_all_alike_count_once(tmp_path: Path) -> None:
    """Thirty problems in three languages, all right: as sure as thirty items, in the score and in the difference."""
    ids = [f"{part}::p{i}" for part in ("rs", "java", "js") for i in range(30)]
    for name in ("base", "same"):
        put(tmp_path / "r.db", name, "1" * 90, ids=ids, spec={"average": "macro"})
    _, same = compare_runs(tmp_path / "r.db").rows
    assert (same.score.low, same.score.high) == pytest.approx(wilson(30, 30))
    assert same.change is not None
    assert (same.change.low, same.change.high) == pytest.approx(paired_difference(30, 0, 0)[1:])


def test_one_problem_in_three_rows_is_one_item(tmp_path: Path) -> None:
    ids = [f"{part}::p" for part in ("rs", "java", "js")]
    put(tmp_path / "r.db", "base", "111", ids=ids, spec={"average": "macro"})
    put(tmp_path / "r.db", "cut", "1ww", ids=ids, spec={"average": "macro"})
    _, cut = compare_runs(tmp_path / "r.db").rows
    assert cut.detail is not None
    assert (cut.detail.se, cut.detail.difference_se) == (None, None)
    assert cut.score.low < 0.15
    assert cut.score.high > 0.85
    for form in ("--json", "--format=csv", "--format=text"):
        done = CliRunner().invoke(compare, [str(tmp_path / "r.db"), form])
        assert done.exit_code == 0
        assert "inf" not in done.stdout.replace("information", "")


def test_repeated_items_that_are_not_all_scored_have_no_interval(tmp_path: Path) -> None:
    ids = [f"{part}::p{i}" for part in ("rs", "java") for i in range(10)]
    put(tmp_path / "r.db", "x", "1" * 19 + "?", ids=ids, spec={"average": "macro"})
    (row,) = compare_runs(tmp_path / "r.db").rows
    assert (row.score.accuracy, row.score.low, row.score.high) == (None, 0.0, 1.0)
    assert row.detail is not None
    assert row.detail.se is None


def test_a_run_that_is_not_complete_is_named(tmp_path: Path) -> None:
    put(tmp_path / "r.db", "base", "1" * 10, spec={"rows": 10})
    put(tmp_path / "r.db", "part", "1" * 4, spec={"rows": 10})
    assert compare_runs(tmp_path / "r.db").notes == ("! part on b: 4 of 10 items were answered",)


def test_logs_named_wrongly_twice_or_empty(tmp_path: Path) -> None:
    log = tmp_path / "r.db"
    put(log, "base", "11")
    assert len(compare_runs([log, tmp_path / "." / "r.db"]).rows) == 1
    assert main(["compare", str(log), str(tmp_path / "typo.db")]) == 3
    empty = tmp_path / "empty.db"
    empty.touch()
    for command in ("audit", "compare"):
        assert main([command, str(empty)]) == 3
    assert empty.read_bytes() == b"", "looking at a file makes no log of it"


def test_several_logs_and_equal_names(tmp_path: Path) -> None:
    put(tmp_path / "one.db", "base", "1111w")
    put(tmp_path / "two.db", "cut", "11www")
    rows = compare_runs([tmp_path / "one.db", tmp_path / "two.db"], base="base").rows
    assert [(row.name, row.change and row.change.lost) for row in rows] == [("base", None), ("cut", 2)]
    put(tmp_path / "two.db", "base", "11111")
    rows = compare_runs([tmp_path / "one.db", tmp_path / "two.db"], base="base@one", against=["base@two"]).rows
    assert [(row.name, row.change and row.change.gained) for row in rows] == [("base@one", None), ("base@two", 1)]
    put(tmp_path / "sub" / "one.db", "base", "1")
    with pytest.raises(RunLogError, match="two logs named one"):
        compare_runs([tmp_path / "one.db", tmp_path / "sub" / "one.db"])


def test_other_conditions_are_refused_in_one_column_and_shown_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.db"
    put(path, "base", "1111w", engine="vllm", temperature=0)
    put(path, "cut", "111ww", engine="vllm", temperature=0)
    put(path, "gguf", "11www", engine="llamacpp", temperature=0)
    put(tmp_path / "deep.db", "one", "1", server={"kv": "f16", "slots": 2})
    put(tmp_path / "deep.db", "two", "1", server={"kv": "q8_0", "slots": 2})
    with pytest.raises(Refused) as error:
        compare_runs(tmp_path / "deep.db")
    assert error.value.actual == "server.kv f16 against q8_0"
    deep = CliRunner().invoke(compare, [str(tmp_path / "deep.db"), "--side-by-side"]).stdout
    assert "column 2: server.kv q8_0\n" in deep
    with pytest.raises(Refused) as error:
        compare_runs(path)
    assert error.value.actual == "engine vllm against llamacpp"
    assert main(["compare", str(path)]) == 5
    assert "engine vllm against llamacpp" in capsys.readouterr().err
    assert main(["compare", str(path), "--base", "base", "--against", "cut"]) == 0
    apart = compare_runs(path, side_by_side=True)
    assert [(row.column, row.name, row.change is not None) for row in apart.rows] == [
        (1, "base", False),
        (1, "cut", True),
        (2, "gguf", False),
    ]
    text = CliRunner().invoke(compare, [str(path), "--side-by-side"]).stdout
    assert "column 2: engine llamacpp\n" in text


def test_recorded_runs_are_compared_by_what_was_asked_and_say_so(tmp_path: Path) -> None:
    """Where samples came from is no part of the bench's identity."""
    put(tmp_path / "r.db", "one", "11w", spec={"imported": {"sha256": "a"}})
    put(tmp_path / "r.db", "two", "1ww", spec={"imported": {"sha256": "b"}})
    made = compare_runs(tmp_path / "r.db")
    assert made.rows[1].change is not None
    assert made.rows[1].change.lost == 1
    assert made.notes == ("imported samples, engine and stack unknown: one, two",)


def test_markdown_csv_and_json_say_the_same(tmp_path: Path) -> None:
    path, evil = tmp_path / "r.db", "=cut|<b>\x1b[31m"
    put(path, "base", "1" * 30 + "w" * 10)
    put(path, evil, "1" * 25 + "w" * 15)
    runner = CliRunner()
    rows = json.loads(runner.invoke(compare, [str(path), "--json"]).stdout)["rows"]
    table = list(csv.DictReader(StringIO(runner.invoke(compare, [str(path), "--format", "csv"]).stdout)))
    for row, line in zip(rows, table, strict=True):
        assert float(line["score"]) == row["accuracy"]
        assert (line["p"] and float(line["p"])) == (row["p"] or "")
    assert table[1]["model"] == "'=cut|<b>\\x1b[31m"
    markdown = runner.invoke(compare, [str(path), "--format", "markdown"]).stdout
    assert "\x1b" not in markdown
    assert "<b>" not in markdown
    assert "=cut\\|&lt;b&gt;" in markdown
    assert {line.count(" | ") for line in markdown.splitlines() if line.startswith("|")} == {13}
