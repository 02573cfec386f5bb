"""Golden maps: shipped ones from an independent slow implementation, and those of the reference implementation.

tests/choose/golden/ holds statistics of the bundled model, cases spelled out in numbers, and the maps that
`helpers.slow_maps` draws from them. Where the reference data is beside the checkout, the slow implementation and the
package are both checked against the maps of the reference implementation.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helpers.slow_maps import read, slow_map, spread
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.reference import import_reference
from trimoe.choose.choose import choose
from trimoe.choose.floor import layer_floors, rescale
from trimoe.choose.recipe import Floor, Outliers, Recipe, load_recipe, names
from trimoe.choose.score import raw_scores
from trimoe.choose.select import make_map
from trimoe.cli.main import main

GOLDEN = Path(__file__).parent / "golden"
SHIPPED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_golden_map_from_the_command_line(name: str, tmp_path: Path) -> None:
    case, out, pins = SHIPPED[name], tmp_path / "map.json", tmp_path / "pins"
    pins.write_text("".join(f"{n}:{e}\n" for n, ids in case.get("force_keep", {}).items() for e in ids))
    command = ["map", str(GOLDEN / case["stats"]), "--base-stats", str(GOLDEN / "base.json.gz"), "-o", str(out)]
    assert main([*command, *(word.format(pins=pins) for word in case["options"])]) == 0
    made = json.loads(out.read_text())
    assert made["drop"] == EXPECTED[name]["drop"]
    assert made["metadata"].get("floors") == EXPECTED[name]["floors"]
    assert made["metadata"]["keep"] == case["keep"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_slow_implementation_makes_the_shipped_maps(name: str) -> None:
    case = SHIPPED[name]
    assert slow_map(read(GOLDEN / case["stats"]), read(GOLDEN / "base.json.gz"), case) == EXPECTED[name]


def test_the_shipped_cases_cover_every_recipe_and_differ() -> None:
    """A recipe without a case, or a case that no option influences, would check nothing."""
    # The reference's statistics do not tell replies from prompts; recipes for replies have tests of their own.
    older = {name for name in names() if not load_recipe(name).positions and load_recipe(name).criterion != "recon"}
    assert older - {"random"} <= set(SHIPPED)
    twins = {"v5": "v4", "agg-mean": "agg-sum", "outlier-zero": "outlier-drop"}  # the same by definition, under ranks
    maps = {name: json.dumps(EXPECTED[name]["drop"]) for name in SHIPPED}
    assert len(set(maps.values())) == len(maps) - len(twins)
    assert all(maps[one] == maps[other] for one, other in twins.items())


def test_the_same_choice_through_the_python_function() -> None:
    """`choose` with values of Python instead of texts, and from open statistics."""
    base = import_reference(GOLDEN / "base.json.gz")
    stats = import_reference(GOLDEN / "targeted.json.gz")
    given: dict[str, dict[str, Any]] = {
        "v5-coder": {},
        "keep-16": {"keep": 16},
        "floor-clamp": {"floor": (3, 20)},
        "outlier-median": {"recipe": "c1", "outliers": ("median", 1e4)},
        "outlier-drop": {"recipe": "c1", "outliers": {"mode": "drop", "limit": 1e4}},
        "class-minimum": {"class_min": {"choice": 9, "math": 9}, "floor": None},
    }
    for name, fields in given.items():
        made = choose(stats, base_stats=base, **fields)
        assert made.as_dict()["drop"] == EXPECTED[name]["drop"], name
    pins = {int(n): ids for n, ids in SHIPPED["force-keep"]["force_keep"].items()}
    made = choose(str(GOLDEN / "targeted.json.gz"), recipe=load_recipe("c1"), force_keep=pins)
    assert made.as_dict()["drop"] == EXPECTED["force-keep"]["drop"]
    per_layer = EXPECTED["floor-clamp"]["floors"]
    made = choose(stats, base_stats=base, floors=per_layer)
    assert made.as_dict()["drop"] == EXPECTED["floor-clamp"]["drop"]


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


@pytest.mark.parametrize("name", CASES)
def test_the_slow_implementation_makes_the_reference_maps(
    reference: tuple[Path, dict, dict[str, ExpertStats]], name: str
) -> None:
    """What vouches for the slow implementation, and with it for the shipped golden maps."""
    folder, cases, stats = reference
    case, classes = cases["cases"][name], stats[cases["cases"][name]["stats"]].classes
    plain: dict[str, Any] = {"normalize": "none", "aggregate": "sum", **case, "keep": cases["keep"]}
    plain["weights"] = dict(zip(classes, case.get("class_weights", [1.0] * len(classes)), strict=True))
    plain["class_min"] = {f"generic_{c}": n for c, n in case.get("class_min", {}).items()}
    if "floor" in case:
        per_layer = json.loads((folder / "floor.json").read_text())["floor_per_layer"]
        floors = [per_layer[str(i)] for i in range(len(per_layer))]
        plain["floors"] = spread(floors, *case["floor"]["clamp"]) if "clamp" in case["floor"] else floors
    made = slow_map(read(folder / case["stats"]), read(folder / "base.json.gz"), plain)["drop"]
    expected = json.loads((folder / "expected_drop_maps.json").read_text())[name]
    assert made == {layer: sorted(ids) for layer, ids in expected.items()}


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
