"""`trimoe stats show`: its numbers against scipy and by hand, its text, its pictures."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata, spearmanr
from test_stats_file import stats_of

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.summary import average_ranks, chance_jaccard, gini, overlap, pool, strongest
from trimoe.cli.main import main

ROWS = arrays(np.float64, st.integers(2, 12), elements=st.integers(0, 6).map(float))


@given(ROWS)
def test_gini_is_the_mean_difference(row: np.ndarray) -> None:
    """Half the relative mean absolute difference of all pairs: the coefficient's definition."""
    if row.sum() == 0:
        assert np.isnan(gini(row))
        return
    difference = np.abs(row[:, None] - row[None, :]).mean()
    assert float(gini(row)) == pytest.approx(difference / (2 * row.mean()), abs=1e-12)


def test_gini_at_the_ends() -> None:
    assert gini(np.full(8, 3.0)) == pytest.approx(0, abs=1e-15)
    assert gini(np.eye(8)[2]) == pytest.approx(7 / 8)
    assert np.isnan(gini(np.array([1.0, np.nan])))
    assert gini(np.ones((2, 3, 4))).shape == (2, 3)


@given(ROWS)
def test_ranks_are_scipys(row: np.ndarray) -> None:
    assert (average_ranks(row) + 1 == rankdata(row)).all()


@given(st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
@settings(max_examples=30, deadline=None)
def test_chance_is_the_mean_over_all_pairs_of_sets(case: tuple[int, int]) -> None:
    experts, top = case
    sets = [set(c) for c in combinations(range(experts), top)]
    mean = np.mean([len(sets[0] & other) / len(sets[0] | other) for other in sets])
    assert chance_jaccard(experts, top) == pytest.approx(mean)


@given(st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_kinship_of_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (3, 4, 8)).astype(float)
    found = overlap(["a", "b", "c"], scores, 3)
    assert [p["classes"] for p in found["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    tops = [[set(np.argsort(-scores[c, layer], kind="stable")[:3].tolist()) for layer in range(4)] for c in range(3)]
    for pair, (a, b) in zip(found["pairs"], [(0, 1), (0, 2), (1, 2)], strict=True):
        jaccard = [len(x & y) / len(x | y) for x, y in zip(tops[a], tops[b], strict=True)]
        assert pair["jaccard"] == pytest.approx(np.mean(jaccard))
        rho = [spearmanr(scores[a, layer], scores[b, layer]).statistic for layer in range(4)]
        assert pair["spearman"] == pytest.approx(np.mean(rho))


def test_what_is_not_finite_never_wins() -> None:
    row = np.array([1.0, np.nan, np.inf, 3.0])
    assert strongest(row).tolist() == [3, 0, 1, 2]
    pooled = pool(np.stack([row[None], np.ones((1, 4))]))
    assert strongest(pooled[0])[:2].tolist() == [3, 0]
    scores = np.stack([row[None], row[None][:, ::-1]])
    assert overlap(["a", "b"], scores, 1)["pairs"][0]["jaccard"] == 0.0
    assert overlap(["a", "b"], np.ones((2, 1, 4)), 1)["pairs"][0]["spearman"] is None


def test_pooling_weighs_classes_alike() -> None:
    scores = np.array([[[1000.0, 0, 0]], [[0, 0, 2.0]], [[0, 0, 3.0]]])
    assert pool(scores).tolist() == [[1.0, 0.0, 2.0]]


class TestShow:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        stats = stats_of(
            3,
            (3, 4, 8),
            model="m" * 64,
            moe_layers=[0, 2, 3],
            document_hashes={"class0": ["0"]},
            bench_items={"humaneval": ["1", "2"]},
            left_out=["out_mean_norm"],
            leak_check={
                "gram": 13,
                "benches": {
                    "he": {"items": 9, "unchecked": 0, "overlapping": ["1", "7"], "undeclared": ["7"]},
                    "math": {"items": 5, "unchecked": 1, "overlapping": [], "undeclared": []},
                },
            },
        )
        stats.fields["tc"][:, 2, 5] = 0
        stats.fields["tc"][1, 3, 1] = 3
        stats.save(tmp_path / "stats")
        return tmp_path / "stats"

    def test_json(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["stats", "show", str(file), "--json", "--min-tokens", "4"]) == 0
        data = json.loads(capsys.readouterr().out)
        stats = ExpertStats.load(file)
        assert data["by"] == "contribution"
        assert data["moe_layers"] == [0, 2, 3]
        assert data["classes"]["class1"] | {"routed_tokens": 0} == {
            "routed_tokens": 0,
            "cells": 24,
            "never_used": 1,
            "least": 4,
            "thin": int((stats.field("tc")[1][[0, 2, 3]] < 4).sum()),
        }
        assert data["classes"]["class1"]["routed_tokens"] == stats.field("tc")[1, 0].sum()
        assert [row["layer"] for row in data["layers"]] == [0, 2, 3]
        assert data["layers"][1]["never_used"] == 1
        assert len(data["layers"][0]["top"]) == len(data["layers"][0]["bottom"]) == 3
        assert data["gini"]["class2"] == pytest.approx(gini(stats.field("tc"))[2, [0, 2, 3]].tolist())
        assert data["overlap"]["top"] == 2
        assert len(data["overlap"]["pairs"]) == 3
        assert "document_hashes" not in data["metadata"]

    def test_text(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["stats", "show", str(file), "--show", "2"]) == 0
        text = capsys.readouterr().out
        for part in (
            "4 layers x 8 experts",
            "experts by contribution",
            "< 16 tokens",
            "(1 never used)",
            "Jaccard of the 2 strongest (by chance 0.18), Spearman of all",
            "left out: out_mean_norm",
            "contains 2 items of humaneval, declared in the set",
            "leak check: 2 of 9 items of he share 13 consecutive words with the set; 1 not declared: 7",
            "leak check: no overlap with math (4 of 5 items checked)",
        ):
            assert part in text, text

    @pytest.mark.parametrize("metadata", [{"bench_items": 3}, {"leak_check": {"benches": [1]}}, {"left_out": 7}])
    def test_damaged_metadata_is_refused(self, tmp_path: Path, metadata: dict[str, object]) -> None:
        stats_of(1, **metadata).save(tmp_path / "s")  # type: ignore[arg-type]
        assert main(["stats", "show", str(tmp_path / "s")]) == 3

    def test_choices(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["stats", "show", str(file), "--by", "frequency", "--class", "class[01]", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["by"], list(data["classes"]), len(data["overlap"]["pairs"])) == (
            "frequency",
            ["class0", "class1"],
            1,
        )
        assert main(["stats", "show", str(file), "--by", "weight"]) == 2
        assert main(["stats", "show", str(file), "--by", "ean"]) == 3  # a known criterion whose field is not there
        assert main(["stats", "show", str(file), "--class", "none*"]) == 3

    def test_heatmaps_are_self_contained_and_reproducible(self, file: Path, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="pictures need the extra report")
        for name in ("a.html", "b.html", "a.png", "b.png"):
            assert main(["stats", "show", str(file), "--heatmap", str(tmp_path / name)]) == 0
        page = (tmp_path / "a.html").read_text()
        assert page.count("<svg") == 3
        assert all(f"class{i}" in page for i in range(3))
        assert "http" not in page.replace("http://www.w3.org", "")
        assert "<script" not in page
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def test_heatmaps_that_cannot_be(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert main(["stats", "show", str(file), "--heatmap", str(tmp_path / "a.pdf")]) == 2
        (tmp_path / "there.png").write_bytes(b"")
        assert main(["stats", "show", str(file), "--heatmap", str(tmp_path / "there.png")]) == 3
        monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
        assert main(["stats", "show", str(file), "--heatmap", str(tmp_path / "a.png")]) == 4
        assert not (tmp_path / "a.png").exists()

    def test_markup_in_names_is_text(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="pictures need the extra report")
        stats = stats_of(1, (1, 2, 3))
        ExpertStats(("<script>x</script>$a$",), stats.fields, {}).save(tmp_path / "s")
        assert main(["stats", "show", str(tmp_path / "s"), "--heatmap", str(tmp_path / "a.html")]) == 0
        assert "<script" not in (tmp_path / "a.html").read_text()

    def test_statistics_without_any_criterion(self, tmp_path: Path) -> None:
        ExpertStats(("a",), {"cc": np.ones((1, 2, 3))}).save(tmp_path / "s")
        assert main(["stats", "show", str(tmp_path / "s")]) == 3
        ExpertStats(("a",), {"tc": np.ones((1, 2, 3))}).save(tmp_path / "t")
        assert main(["stats", "show", str(tmp_path / "t")]) == 0

    @pytest.mark.parametrize("name", ["base.json.gz", "targeted.json.gz"])
    def test_reference_statistics(self, shared: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        path = shared / "reference" / "drop-maps" / "gemma4-shape" / name
        assert main(["stats", "show", str(path)]) == 0
        assert "30 layers x 128 experts" in capsys.readouterr().out
