"""Every published recipe reproduces the reference implementation's maps exactly."""

import json
from pathlib import Path

import msgspec
import pytest

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.reference import import_reference
from trimoe.choose.floor import layer_floors, rescale
from trimoe.choose.recipe import Floor, Outliers, Recipe, load_recipe
from trimoe.choose.score import raw_scores
from trimoe.choose.select import make_map

SHAPES = ("small", "gemma4-shape")
CASES = (
    "v4",
    "v5-coder",
    "c11",
    "outlier-median",
    "outlier-drop",
    "floor-clamp",
    "agg-mean",
    "agg-geomean",
    "agg-sum",
    "agg-lp4",
    "agg-softmax_t4",
    "agg-second",
    "agg-top3mean",
    "v3",
)


@pytest.fixture(scope="module", params=SHAPES)
def reference(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, dict, dict[str, ExpertStats]]:
    folder = shared / "reference" / "drop-maps" / request.param
    stats = {n: import_reference(folder / n) for n in ("base.json.gz", "targeted.json.gz")}
    return folder, json.loads((folder / "cases.json").read_text()), stats


def from_case(case: dict, stats: ExpertStats) -> Recipe:
    """The recipe that a reference case spells out."""
    if case.get("pooled"):
        return msgspec.structs.replace(load_recipe("v3"), protect_top=case["protect_top"])
    outliers = case.get("outliers")
    return Recipe(
        name="case",
        alpha=case["alpha"],
        normalize=case["normalize"],
        aggregate=case["aggregate"],
        class_weights=dict(zip(stats.classes, case["class_weights"], strict=True)),
        breadth_bonus=case["breadth_bonus"],
        protect_top=case["protect_top"],
        class_min=case.get("class_min", {}),
        floor=Floor(clamp=(0, 0)) if "floor" in case else None,
        outliers=Outliers(mode=outliers["mode"], limit=outliers["wnorm_above"]) if outliers else None,
    )


@pytest.mark.parametrize("name", CASES)
def test_golden_map(reference: tuple[Path, dict, dict[str, ExpertStats]], name: str) -> None:
    folder, cases, stats = reference
    case = cases["cases"][name]
    floors = None
    if "floor" in case:
        per_layer = json.loads((folder / case["floor"]["map"]).read_text())["floor_per_layer"]
        floors = [per_layer[str(i)] for i in range(len(per_layer))]
        if "clamp" in case["floor"]:
            floors = rescale([float(f) for f in floors], tuple(case["floor"]["clamp"]))
    used = stats[case["stats"]]
    made = make_map(used, from_case(case, used), base_stats=stats["base.json.gz"], keep=cases["keep"], floors=floors)
    expected = json.loads((folder / "expected_drop_maps.json").read_text())[name]
    assert {str(k): list(v) for k, v in made.drop.items()} == {k: sorted(v) for k, v in expected.items()}


@pytest.mark.parametrize("name", ["v3", "v4", "v5-coder", "c11"])
def test_shipped_recipe_scales_to_the_golden_map(
    reference: tuple[Path, dict, dict[str, ExpertStats]], name: str
) -> None:
    folder, cases, stats = reference
    used = stats[cases["cases"][name]["stats"]]
    made = make_map(used, load_recipe(name), base_stats=stats["base.json.gz"], keep=cases["keep"])
    expected = json.loads((folder / "expected_drop_maps.json").read_text())[name]
    assert {str(k): list(v) for k, v in made.drop.items()} == {k: sorted(v) for k, v in expected.items()}


def test_floor_is_derived_as_the_reference_does(reference: tuple[Path, dict, dict[str, ExpertStats]]) -> None:
    folder, cases, stats = reference
    scores, _ = raw_scores(stats["base.json.gz"], "contribution", 2.0)
    floors = layer_floors(scores.max(0), cases["floor_top_k"], tuple(cases["floor_clamp"]))
    expected = json.loads((folder / "floor.json").read_text())["floor_per_layer"]
    assert floors == [expected[str(i)] for i in range(len(expected))]
