"""ContribDynamic maps: the reference's files, rankings, and what becomes of each line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.blueprints import real_width, write_imatrix
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.errors import BadInput, CheckpointError, Refused, StatsError, UsageError
from trimoe.io.canonical import sha256_file
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.quantize.ladder.dynamic import (
    Ranking,
    explain_overrides,
    layer_types,
    map_text,
    normal,
    overrides_of,
    parse_map,
    provenance,
    rank_by_file,
    rank_by_imatrix,
    rank_by_stats,
    require_fresh,
    split,
)
from trimoe.quantize.types.tiers import all_tiers, default_ladder, find_tiers, parse_tiers
from trimoe.quantize.types.type_rules import choose_types

TIERS = [name for name, tier in all_tiers().items() if tier.dynamic]
NO_REFERENCE = {"CD-Q3_K_M"}  # named on the reference's cards; its map was not published


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference" / "omnimergekit-data" / "tensor_types"


@pytest.fixture(scope="module")
def reference_ranking(reference: Path) -> Ranking:
    """The ranking behind the reference's maps, read back from one of them: its three types tell top, mid and low."""
    lines = dict(word.split("=") for word in (reference / "tensor_types_CD-Q6_K.txt").read_text().split())
    group = {layer: ("Q8_0", "Q6_K", "Q5_K").index(lines[f"blk.{layer}.ffn_up.weight"]) for layer in range(30)}
    return Ranking(tuple(sorted(group, key=lambda layer: (group[layer], layer))), "file", "")


@pytest.mark.parametrize("name", sorted(set(TIERS) - NO_REFERENCE))
def test_maps_equal_the_references_files(name: str, reference: Path, reference_ranking: Ranking) -> None:
    want = (reference / f"tensor_types_{name}.txt").read_bytes()
    assert map_text(overrides_of(all_tiers()[name], reference_ranking)).encode() == want


def test_every_reference_file_has_a_tier(reference: Path) -> None:
    names = {file.name.removeprefix("tensor_types_").removesuffix(".txt") for file in reference.glob("*.txt")}
    assert names == set(TIERS) - NO_REFERENCE


def test_tiers_that_name_mixes_are_refused() -> None:
    for name in ("CD-IQ3_K_M", "CD-IQ2_K"):
        with pytest.raises(Refused, match="names file mixes"):
            find_tiers([name])
    with pytest.raises(UsageError, match="there is no tier Q4_K_X"):
        find_tiers(["Q4_K_X"])
    with pytest.raises(UsageError, match="named twice"):
        find_tiers(["Q4_K_M", "Q4_K_M"])


def test_the_default_ladder_is_the_sweep() -> None:
    names = [tier.name for tier in default_ladder()]
    assert len(names) == 27
    assert {"Q8_0", "Q6_K_L", "IQ2_XS", "CD-Q6_K", "CD-Q3_K_L"} <= set(names)
    assert not {"Q2_K", "CD-Q2_K", "IQ2_XXS", "CD-IQ3_K_M", "F16"} & set(names)


def test_tier_files_refuse_unknown_keys_and_types() -> None:
    with pytest.raises(BadInput, match="typo"):
        parse_tiers('[tier.X]\nfile_type = "Q6_K"\nimatrix = "never"\ntypo = 1', "x.toml")
    with pytest.raises(BadInput, match=r"(?s)unknown file type.*Q7_K"):
        parse_tiers('[tier.X]\nfile_type = "Q7_K"\nimatrix = "never"', "x.toml")


def test_counts_of_the_reference_and_of_other_depths() -> None:
    assert split(30) == (1, 7)
    assert split(4) == (1, 1)
    assert split(60) == (2, 14)


@given(st.integers(1, 200))
def test_every_layer_gets_a_type_at_any_depth(layers: int) -> None:
    top, mid = split(layers)
    assert top >= 1
    assert top + mid <= layers
    mix = all_tiers()["CD-Q6_K"].dynamic
    assert mix is not None
    types = layer_types(mix, Ranking(tuple(range(layers)), "file", ""))
    assert [types[i] for i in range(layers)] == ["Q8_0"] * top + ["Q6_K"] * mid + ["Q5_K"] * (layers - top - mid)


def test_ranking_by_imatrix_divides_totals(tmp_path: Path) -> None:
    shapes = {"blk.0.ffn_down_exps.weight": (2, 4), "blk.1.ffn_down_exps.weight": (2, 4), "blk.1.attn_q.weight": (1, 4)}
    counts = {"blk.0.ffn_down_exps.weight": [1.0, 3.0], "blk.1.ffn_down_exps.weight": [64.0, 64.0]}
    imatrix = open_imatrix(write_imatrix(tmp_path / "i.gguf", shapes, counts))
    ranking = rank_by_imatrix(imatrix, 2, "hash")
    # sums are 64 everywhere: layer 0: 2 x 4 x 64 / 4; layer 1: 2 x 4 x 64 / 128 + 4 x 64 / 64
    assert ranking == Ranking((0, 1), "imatrix", "hash", (128.0, 8.0))
    with pytest.raises(CheckpointError, match="has no data for layer 2"):
        rank_by_imatrix(imatrix, 3, "")
    with pytest.raises(CheckpointError, match=r"(?s)entry for blk.1.*another model"):
        rank_by_imatrix(imatrix, 1, "")


def test_ranking_by_statistics() -> None:
    wnorm = np.array([[[1.0, 1.0], [5.0, 0.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 0.5], [3.0, 0.0]]])
    stats = ExpertStats(("a", "b"), {"wnorm": wnorm})
    assert rank_by_stats(stats, 3).layers == (2, 1, 0)
    with pytest.raises(StatsError, match="another model"):
        rank_by_stats(stats, 4)
    with pytest.raises(Refused, match="NaN"):
        rank_by_stats(ExpertStats(("a",), {"wnorm": np.array([[[1.0], [np.nan]]])}), 2)


def test_ranking_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ranking.json"
    file.write_text('{"ranking": [2, 0, 1]}')
    assert rank_by_file(file, 3).layers == (2, 0, 1)
    assert rank_by_file(file, 3).sha256 == sha256_file(file)
    file.write_text('{"scores": {"0": 1.0, "1": 3.0, "2": 1.0}}')
    assert rank_by_file(file, 3).layers == (1, 0, 2)
    for text in (
        '{"ranking": [0, 0, 1]}',
        '{"ranking": [0, 1]}',
        '{"scores": {"0": 1}}',
        "{}",
        '{"order": [0]}',
        '{"scores": {"0": NaN, "1": 1, "2": 1}}',
    ):
        file.write_text(text)
        with pytest.raises(BadInput):
            rank_by_file(file, 3)


def test_what_becomes_of_each_line() -> None:
    blueprint = real_width(30, 98)
    tier = all_tiers()["CD-Q4_K_M"]
    overrides = normal(overrides_of(tier, Ranking(tuple(range(30)), "file", "")))
    choices = choose_types(blueprint.tensors, blueprint.facts, tier.request(overrides, imatrix=True))
    report = explain_overrides(overrides, choices)
    full = [layer for layer, geometry in enumerate(blueprint.attention) if geometry.window is None]
    assert set(report.unmatched) == {f"blk.{layer}.attn_v.weight" for layer in full}
    # A regular expression: it finds attn_output.weight too, whose own lines come first.
    assert report.shadowed == ("output.weight",)
    assert len(report.ignored) == 3 * 30  # router weights and both scales
    assert report.fallbacks["blk.0.ffn_down.weight"] == ("Q5_K", "Q5_1")
    assert report.fallbacks["blk.29.ffn_down_exps.weight"] == ("Q3_K", "Q4_0")
    assert len(report.fallbacks) == 60


def test_shadowed_lines_are_named() -> None:
    blueprint = real_width(2, 9)
    overrides = (("attn_q", "Q8_0"), (r"blk\.0\.attn_q", "Q6_K"))
    request = all_tiers()["Q4_K_M"].request(overrides, imatrix=False)
    report = explain_overrides(overrides, choose_types(blueprint.tensors, blueprint.facts, request))
    assert report.shadowed == (r"blk\.0\.attn_q",)


def test_stale_and_edited_maps_are_refused() -> None:
    tier, ranking = all_tiers()["CD-Q4_K_M"], Ranking((1, 0), "imatrix", "aaaa")
    text = map_text(overrides_of(tier, ranking))
    blueprint = real_width(2, 9)
    choices = choose_types(blueprint.tensors, blueprint.facts, tier.request(imatrix=True))
    sidecar = json.loads(json.dumps(provenance(tier, ranking, text, explain_overrides((), choices))))
    require_fresh(sidecar, text.encode(), ranking)
    with pytest.raises(Refused, match=r"(?s)stale.*imatrix bbbb"):
        require_fresh(sidecar, text.encode(), Ranking((1, 0), "imatrix", "bbbb"))
    with pytest.raises(Refused, match="was changed"):
        require_fresh(sidecar, text.encode() + b"x=q8_0\n", ranking)


def test_maps_of_users(tmp_path: Path) -> None:
    file = tmp_path / "map.txt"
    file.write_text("blk.0.ffn_up=q8_0  attn_v=Q6_K\n")
    assert parse_map(file) == (("blk.0.ffn_up", "Q8_0"), ("attn_v", "Q6_K"))
    for text in ("# comment", "ffn_up", "=q8_0", "ffn_up=", "ffn_(=q8_0"):
        file.write_text(text)
        with pytest.raises(BadInput):
            parse_map(file)


def test_other_families_get_lines_for_their_own_tensors() -> None:
    names = [
        "blk.0.ffn_up_exps.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_norm.weight",
        "blk.0.ffn_up_shexp.weight",
    ]
    patterns = [p for p, _ in overrides_of(all_tiers()["CD-Q6_K"], Ranking((0,), "file", ""), names)]
    assert {"blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_shexp.weight"} <= set(patterns)
    assert "blk.0.ffn_norm.weight" not in patterns
