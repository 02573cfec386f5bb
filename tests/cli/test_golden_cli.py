"""All 14 reference cases in both shapes through the command line alone: import, map, compare."""

import json
from pathlib import Path

import pytest

from trimoe.cli.main import main

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


@pytest.fixture(scope="module", params=["small", "gemma4-shape"])
def folder(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source, work = shared / "reference" / "drop-maps" / request.param, tmp_path_factory.mktemp("stats")
    for name in ("base", "targeted"):
        assert main(["stats", "import", str(source / f"{name}.json.gz"), "-o", str(work / f"{name}.safetensors")]) == 0
    return source, work


def arguments(case: dict, keep: int, source: Path, work: Path, classes: list[str]) -> list[str]:
    """The options that spell out a reference case."""
    stats = case["stats"].replace("json.gz", "safetensors")
    words = [
        "map",
        str(work / stats),
        "--keep",
        str(keep),
        "--alpha",
        str(case["alpha"]),
        "--protect-top",
        str(case["protect_top"]),
    ]
    if case.get("pooled"):
        return [*words, "--recipe", "v3"]
    weights = ",".join(f"{c}={w}" for c, w in zip(classes, case["class_weights"], strict=True))
    recipe = "c11" if "class_min" in case else "c1"
    words += ["--recipe", recipe, "--normalize", case["normalize"], "--aggregate", case["aggregate"]]
    words += ["--class-weights", weights, "--breadth-bonus", str(case["breadth_bonus"])]
    if "floor" in case:
        words += ["--base-stats", str(work / "base.safetensors"), "--floor-file", str(source / case["floor"]["map"])]
        if "clamp" in case["floor"]:
            words += ["--floor-clamp", ":".join(map(str, case["floor"]["clamp"]))]
    if "outliers" in case:
        words += ["--outliers", f"{case['outliers']['mode']}:{case['outliers']['wnorm_above']}"]
    for name, least in case.get("class_min", {}).items():
        words += ["--class-min", f"{name}={least}"]
    return words


@pytest.mark.parametrize("name", CASES)
def test_map_equals_the_reference(folder: tuple[Path, Path], name: str, tmp_path: Path) -> None:
    source, work = folder
    cases = json.loads((source / "cases.json").read_text())
    case = cases["cases"][name]
    from trimoe.calibrate.stats.expert_stats import ExpertStats

    classes = ExpertStats.load(work / case["stats"].replace("json.gz", "safetensors")).classes
    out = tmp_path / "map.json"
    assert main([*arguments(case, cases["keep"], source, work, list(classes)), "-o", str(out)]) == 0
    expected = json.loads((source / "expected_drop_maps.json").read_text())[name]
    assert json.loads(out.read_text())["drop"] == {layer: sorted(ids) for layer, ids in expected.items()}
