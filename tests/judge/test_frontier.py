"""Ladders: the reference's iso-disk comparison from its published numbers, the front, both directions, bad files."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trimoe.bench.bench import Verdict
from trimoe.cli.ladder import ladder
from trimoe.cli.main import main
from trimoe.errors import BadInput, Refused, UsageError
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.audit.audit import audit
from trimoe.judge.compare import compare
from trimoe.judge.frontier.points import Point, best_under, front, gigabytes, pair_by_size, smallest_within
from trimoe.judge.frontier.score_table import read_score_table
from trimoe.judge.statistics.paired import mcnemar_exact, sign_flip_exact

CARD = Path(__file__).parent / "iso_disk.csv"


def card() -> tuple[list[Point], list[Point]]:
    points = read_score_table(CARD, [], "humaneval-plus")
    return [p for p in points if p.model == "98e"], [p for p in points if p.model != "98e"]


def test_the_iso_disk_comparison_of_the_card() -> None:
    """Protocol section 9: +6.09, +7.31, +0.61 and -79.27, the last against the card's own pick, Q2_K."""
    ours, rivals = card()
    picked = [p for p in ours if p.tier in ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")]
    pairs = [pair for _, pair in pair_by_size(picked, rivals, 0.1, "nearest") if pair]
    assert [(p.rival.tier, p.ours.tier, round(100 * p.difference, 2)) for p in pairs] == [
        ("Q8_0", "Q5_K_M", 6.09),
        ("Q6_K", "Q4_K_M", 7.31),
        ("Q5_K_M", "Q3_K_M", 0.61),
        ("Q4_K_M", "Q2_K", -79.27),
    ]
    assert {p.p for p in pairs} == {None}  # published numbers have no paired test


def test_the_fair_pick_in_the_smallest_band_is_a_tier_that_the_card_left_out() -> None:
    ours, rivals = card()
    nearest = pair_by_size(ours, rivals, 0.1, "nearest")[-1][1]
    best = pair_by_size(ours, rivals, 0.1, "best")[-1][1]
    assert nearest is not None
    assert best is not None
    assert (nearest.ours.tier, round(100 * nearest.difference, 2)) == ("IQ3_XXS", 3.65)
    # IQ3_M has the same score and is larger
    assert (best.ours.tier, round(100 * best.difference, 2)) == ("IQ3_XS", 6.09)
    assert pair_by_size(ours[-1:], rivals, 0.1, "best")[-1][1] is None


def test_bits_per_weight_of_the_card() -> None:
    ours, _ = card()
    assert [round(p.bpw or 0, 2) for p in ours] == [3.23, 3.44, 3.55, 3.72, 3.78, 4.04, 4.21, 5.09, 5.80, 6.85]


def test_both_directions() -> None:
    ours, _ = card()
    assert best_under(ours, 13 * 10**9).tier == "IQ3_XS"  # equal to IQ3_M, and smaller
    assert best_under(ours, 14 * 10**9).tier == "Q4_K_M"
    small, top = smallest_within(ours, 1)
    assert (small.tier, top.tier) == ("IQ3_XS", "Q4_K_M")
    assert smallest_within(ours, 0)[0].tier == "Q4_K_M"
    with pytest.raises(UsageError, match="no file is at most"):
        best_under(ours, 10**9)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    points = [Point("m", str(i), size, score / 20, "measured") for i, (size, score) in enumerate(pairs)]
    found = front(points)

    def beaten(p: Point) -> bool:
        return any(q.size <= p.size and q.score >= p.score and (q.size, q.score) != (p.size, p.score) for q in points)

    assert {(p.size, p.score) for p in found} == {(p.size, p.score) for p in points if not beaten(p)}
    assert [p.size for p in found] == sorted({p.size for p in found})


def put(path: Path, name: str, answers: str, **sampler: Any) -> None:
    with RunLog(path) as log:
        run = log.start(name, "b", {"name": "b"}, f"hash of {name}", sampler, {})
        log.add(
            run,
            [
                (Sample(f"d{i}", i, "", "", "stop", 1, 1), Verdict(a == "1", "correct" if a == "1" else "wrong"))
                for i, a in enumerate(answers)
            ],
            1,
        )


def test_measured_points_come_from_the_log_with_a_paired_test(tmp_path: Path) -> None:
    log = tmp_path / "r.db"
    put(log, "big", "1" * 18 + "ww")
    put(log, "small", "1" * 10 + "w" * 10)
    (tmp_path / "weights.gguf").write_bytes(b"x" * 1234)
    file = tmp_path / "ladder.csv"
    file.write_text(
        "model,tier,bytes,file,run,score\nours,Q8,2000,,big,\nours,Q2,,weights.gguf,small,\nnews,Q4,1300,,,97\n"
    )
    points = read_score_table(file, [log], "b")
    assert [(p.kind, p.size, p.score) for p in points] == [
        ("measured", 2000, 0.9),
        ("measured", 1234, 0.5),
        ("published", 1300, 0.97),
    ]
    done = CliRunner().invoke(
        ladder, [str(file), str(log), "--bench", "b", "--within", "50", "--ours", "ours", "--json"]
    )
    body = json.loads(done.stdout)
    assert body["smallest_within"]["tier"] == "Q2"
    assert body["smallest_within"]["p"] == mcnemar_exact(8, 0)
    assert body["pairs"][0]["difference"] == pytest.approx(0.5 - 0.97)
    # a published number does not push a measured file off its front
    assert [p["front"] for p in body["points"]] == [True, True, True]
    put(log, "hot", "11", engine="other")
    file.write_text("model,tier,bytes,run\no,Q8,2000,big\no,Q2,1000,hot\n")
    with pytest.raises(Refused, match="engine, sampler or stack"):
        read_score_table(file, [log], "b")


def test_a_ladder_says_of_two_runs_what_compare_says(tmp_path: Path) -> None:
    """Problems in three languages: interval, difference and p are over problems, as everywhere else."""
    log, file = tmp_path / "r.db", tmp_path / "ladder.csv"
    ids = [f"{part}::p{i}" for part in ("rs", "java", "js") for i in range(30)]
    for name, answers in (("base", "1" * 30), ("cut", "w" * 6 + "1" * 24)):
        with RunLog(log) as opened:
            run = opened.start(name, "m", {"name": "m", "average": "macro", "rows": 90}, f"hash of {name}", {}, {})
            opened.add(
                run,
                [
                    (
                        Sample(doc, i, "", "", "stop", 1, 1),
                        Verdict(answers[i % 30] == "1", "correct" if answers[i % 30] == "1" else "wrong"),
                    )
                    for i, doc in enumerate(ids)
                ],
                1,
            )
    file.write_text("model,tier,size_gb,run\nx,Q8,2,base\ny,Q4,2,cut\n")
    command = [str(file), str(log), "--bench", "m", "--ours", "y", "--within", "50", "--json"]
    body = json.loads(CliRunner().invoke(ladder, command).stdout)
    base, cut = compare(log).rows
    assert [p["interval"] for p in body["points"]] == [[row.score.low, row.score.high] for row in (base, cut)]
    assert cut.change is not None
    assert (body["pairs"][0]["difference"], body["pairs"][0]["p"]) == (cut.change.difference, cut.change.p)
    assert cut.change.p == sign_flip_exact([-3] * 6) > mcnemar_exact(18, 0)
    (audited,) = audit(log, name="cut")
    assert (audited.low, audited.high) == (cut.score.low, cut.score.high)


def test_runs_that_answered_other_items_are_no_ladder(tmp_path: Path) -> None:
    log, file = tmp_path / "r.db", tmp_path / "ladder.csv"
    put(log, "base", "w" * 10 + "1" * 10)
    put(log, "part", "1" * 10)
    file.write_text("model,tier,size_gb,run\nx,Q8,2,base\ny,Q4,1,part\n")
    with pytest.raises(Refused, match="did not answer the same items"):
        read_score_table(file, [log], "b")


def test_what_csv_has_no_place_for_goes_beside_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(ladder, [str(CARD), "--bench", "humaneval-plus", "--under", "13GB", "--format", "csv"])
    assert "best under 13 GB" in done.stderr
    assert "best under" not in done.stdout
    for option in ("--within", "--tolerance"):
        assert main(["ladder", str(CARD), "--bench", "humaneval-plus", option, "nan"]) == 2


def test_small_files_have_sizes_too() -> None:
    assert [gigabytes(size) for size in (12_345_678_900, 10**9, 9_340_000, 12)] == [
        "12.35",
        "1.00",
        "0.00934",
        "1.2e-08",
    ]


def test_a_score_without_a_bench_is_of_one_bench(tmp_path: Path) -> None:
    file = tmp_path / "ladder.csv"
    file.write_text("model,tier,size_gb,score,bench\na,b,1,20,\nc,d,1,30,m\n")
    assert len(read_score_table(file, [], "m")) == 2
    with pytest.raises(BadInput, match="does not name the bench"):
        read_score_table(file, [], "m", only_bench=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,tier,size_gb,score,surprise\na,b,1,2,3\n", "unknown columns"),
        ("model,size_gb,score\na,1,2\n", "lacks columns"),
        ("model,tier,size_gb,score\na,b,1,120\n", "not in percent"),
        ("model,tier,size_gb,score\na,b,nan,20\n", "not a number"),
        ("model,tier,size_gb,score\na,b,0,20\n", "is not a size"),
        ("model,tier,size_gb,score,run\na,b,1,20,x\n", "either run or score"),
        ("model,tier,size_gb,score,run\na,b,1,,x\n", "no run named x"),
        ("model,tier,size_gb,bytes,score\na,b,1,2,20\n", "one size"),
        ("model,tier,file,score\na,b,none.gguf,20\n", "contains no weights"),
        ("model,tier,size_gb,score\na,b,1\n", "different number of cells"),
        ("model,tier,size_gb,score\n", "no row"),
        ("model,tier,size_gb,score\na,b,1e300,20\n", "not a number"),
        ("model,tier,size_gb,score\na,b,1_0,20\n", "not a number"),
        ("model,tier,size_gb,score,n\na,b,1,20,1e308\n", "not a number"),
        ("model,tier,size_gb,score,n\na,b,1,20,10.7\n", "whole number"),
        ("model,tier,size_gb,score,n\na,b,1,20,0\n", "whole number"),
        ("model,tier,size_gb,score\na,b,1,20\na,b,2,30\n", "each file once"),
        ("model,tier,size_gb,score\n,,1,20\n", "do not name one file"),
        ("model,tier,size_gb,score,score\na,b,1,20,30\n", "column twice"),
        ("model,tier,size_gb,score,run,n\na,b,1,,x,10\n", "not allowed for a measured"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "ladder.csv"
    file.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_score_table(file, [], "b")


def test_the_plot_keeps_published_numbers_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg", "one.png"):
        assert main(["ladder", str(CARD), "--bench", "humaneval-plus", "--plot", str(tmp_path / name)]) == 0
    svg = (tmp_path / "one.svg").read_bytes()
    assert svg == (tmp_path / "two.svg").read_bytes()
    text = "".join(ElementTree.fromstring(svg).itertext())
    assert "published (not measured here)" in text
    assert "measured here" not in text.replace("(not measured here)", "")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["ladder", str(CARD), "--bench", "humaneval-plus", "--plot", str(tmp_path / "x.pdf")]) == 2


def test_tables(tmp_path: Path) -> None:
    runner = CliRunner()
    text = runner.invoke(ladder, [str(CARD), "--bench", "humaneval-plus", "--ours", "98e", "--under", "13GB"]).stdout
    assert "best under 13 GB: 98e IQ3_XS, 9.22 GB, 91.46 % (published)" in text
    assert "not measured on both sides" in text
    table = runner.invoke(ladder, [str(CARD), "--bench", "humaneval-plus", "--format", "markdown"]).stdout
    assert table.count("| published |") == 14
    assert main(["ladder", str(CARD), "--bench", "humaneval-plus", "--ours", "none"]) == 2
