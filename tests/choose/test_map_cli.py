"""`trimoe map` as a user calls it: all reference maps from the command line, and refusals by exit code."""

import json
from pathlib import Path

import numpy as np
import pytest

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main

CODER = ["--recipe", "c1", "--breadth-bonus", "0.5", "--floor-file", "{floor}"]
# The options that reproduce each reference case; {floor} is the reference's floor file. v4, v5-coder, c11 and v3 are
# the shipped recipes as they are, and derive the floor themselves.
CASES: dict[str, list[str]] = {
    "v3": ["--recipe", "v3"],
    "v4": ["--recipe", "v4"],
    "v5-coder": ["--recipe", "v5-coder"],
    "c11": ["--recipe", "c11"],
    "outlier-median": ["--recipe", "v5-coder", "--floor-file", "{floor}", "--outliers", "median:1e4"],
    "outlier-drop": ["--recipe", "v5-coder", "--floor-file", "{floor}", "--outliers", "drop:1e4"],
    "floor-clamp": [*CODER, "--floor-clamp", "{clamp}", "--class-weights", "targeted_humaneval*=0"],
    **{
        f"agg-{a}": ["--recipe", "c1", "--aggregate", a]
        for a in ("mean", "geomean", "sum", "lp4", "softmax_t4", "second", "top3mean")
    },
}


@pytest.fixture(scope="module", params=["small", "gemma4-shape"])
def imported(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folder's files, with the statistics imported by the command line."""
    source, target = shared / "reference" / "drop-maps" / request.param, tmp_path_factory.mktemp(request.param)
    for name in ("base", "targeted"):
        assert main(["stats", "import", str(source / f"{name}.json.gz"), "-o", str(target / name)]) == 0
    for name in ("cases.json", "floor.json", "expected_drop_maps.json"):
        (target / name).write_bytes((source / name).read_bytes())
    return target


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_reference_map_from_the_command_line(imported: Path, case: str, tmp_path: Path) -> None:
    spec = json.loads((imported / "cases.json").read_text())
    assert set(spec["cases"]) == set(CASES)
    clamp = spec["cases"]["floor-clamp"]["floor"]["clamp"]
    options = [o.format(floor=imported / "floor.json", clamp=":".join(map(str, clamp))) for o in CASES[case]]
    stats = imported / spec["cases"][case]["stats"].removesuffix(".json.gz")
    out = tmp_path / "map.json"
    # the budget, too, is the recipe's own
    assert main(["map", str(stats), "--base-stats", str(imported / "base"), *options, "-o", str(out)]) == 0
    expected = json.loads((imported / "expected_drop_maps.json").read_text())[case]
    made = DropMap.load(out)
    assert {str(k): list(v) for k, v in made.drop.items()} == {k: sorted(v) for k, v in expected.items()}
    again = tmp_path / "again.json"
    assert main(["map", str(stats), "--base-stats", str(imported / "base"), *options, "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_outlier_cells_are_visible(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 % of the cells of gemma4-shape are huge: ranked as they are they are counted, imputed they are counted too."""
    if "gemma4" not in str(imported):
        pytest.skip("only the larger reference statistics have outliers")
    capsys.readouterr()
    for options, ranked in (([], True), (["--outliers", "median:1e4"], False)):
        assert main(["map", str(imported / "targeted"), "--dry-run", "--json", *options]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["extreme_cells_ranked"] > 0) is ranked
        assert (data["imputed_cells"] > 0) is not ranked


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    fields = {n: rng.random((3, 2, 8)) + 0.5 for n in ("tc", "wnorm", "reap_sum", "ean_sum")}
    path = tmp_path / "stats.safetensors"
    ExpertStats(("generic_code", "generic_math", "targeted_code"), fields, {"model": "m"}).save(path)
    return path


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--keep", "3", "--drop-fraction", "0.5"], 2, "contradict"),
        (["--class-weights", "code"], 2, "CLASS=NUMBER"),
        (["--class-weights", "kode=3"], 3, "no class matches kode"),
        (["--class-weights", "code=nan"], 2, "not a number"),
        (["--class-weights", "code=-1"], 3, "class_weights"),
        (["--class-min", "poetry=1"], 3, "poetry"),
        (["--floor", "3"], 2, "LO:HI"),
        (["--floor", "5:3"], 3, "LO <= HI"),
        (["--floor", "1/0:1"], 3, "share"),
        (["--floor", "1:3", "--floor-clamp", "1:3"], 2, "contradicts"),
        (["--outliers", "mean:1"], 3, "outliers"),
        (["--outliers", "median:lots"], 2, "not a number"),
        (["--criterion", "magic"], 3, "criterion"),
        (["--aggregate", "magic"], 3, "aggregate"),
        (["--normalize", "magic"], 3, "normalize"),
        (["--keep", "9"], 3, "1..8"),
        (["--recipe", "magic"], 3, "unknown recipe"),
        (["--recipe", "missing.toml"], 3, "unknown recipe"),
        (["--explain", "0"], 2, "LAYER:EXPERT"),
        (["--explain", "9:0"], 3, "no expert 9:0"),
        (["--force-keep", "missing"], 3, "not found"),
        (["--floor-file", "missing"], 3, "not found"),
        (["--base-stats", "missing"], 3, "missing"),
    ],
)
def test_refusals(
    stats: Path, options: list[str], code: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.json"
    assert main(["map", str(stats), "-o", str(out), "--json", *options]) == code
    error = json.loads(capsys.readouterr().out)
    assert word in json.dumps(error)
    assert not out.exists()


def test_output_is_never_overwritten_and_has_to_be_named(stats: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("mine")
    assert main(["map", str(stats), "-o", str(tmp_path / "map.json")]) == 3
    assert (tmp_path / "map.json").read_text() == "mine"
    assert main(["map", str(stats)]) == 2


def test_overrides_reach_the_map(stats: Path, tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text("# layer:expert\n0:1\n1:7\n")
    out = tmp_path / "map.json"
    command = ["map", str(stats), "--recipe", "c1", "--drop-fraction", "0.5", "--alpha", "1.5", "--protect-top", "1/8"]
    command += ["--class-weights", "code=4", "--floor", "1:2", "--class-min", "math=1", "--force-keep", str(pins)]
    assert main([*command, "-o", str(out)]) == 0
    made = DropMap.load(out)
    recipe = made.metadata["recipe"]
    assert recipe["alpha"] == 1.5
    assert made.metadata["classes"] == {"generic_code": 4.0, "generic_math": 1.0, "targeted_code": 2.0}
    assert made.metadata["resolved"] == {"keep": 4, "drop": 4, "protect_top": 1, "class_min": {"math": 1}}
    assert (made.metadata["model"], made.metadata["force_keep"]) == ("m", {"0": [1], "1": [7]})
    assert sorted(set(made.metadata["floors"])) == [1, 2]
    assert 1 in made.keep(0)
    assert 7 in made.keep(1)


def test_explain_and_diff(stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one.json"
    assert main(["map", str(stats), "--recipe", "reap", "--keep", "4", "-o", str(one)]) == 0
    gone = DropMap.load(one).drop[0][0]
    capsys.readouterr()
    command = ["map", str(stats), "--recipe", "reap", "--keep", "4", "--dry-run", "--json", "--diff", str(one)]
    assert main([*command, "--explain", f"0:{gone}"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["diff"] == {"swaps": 0, "layers": {}}
    assert data["map"] is None
    told = data["explain"][0]
    assert told["dropped"]
    assert told["rank"] > 4
    assert told["score"] <= told["lowest_kept_score"]


@pytest.mark.parametrize("recipe", ["v5-coder", "reap", "ean", "frequency", "random-3"])
def test_not_finite_is_refused_not_ranked(stats: Path, recipe: str, tmp_path: Path) -> None:
    loaded = ExpertStats.load(stats)
    for name in loaded.fields:
        loaded.fields[name][0, 0, 3] = np.nan
    loaded.save(tmp_path / "nan")
    code = main(["map", str(tmp_path / "nan"), "--recipe", recipe, "--dry-run"])
    assert code == (0 if recipe == "random-3" else 3)


def test_routing_counts_alone_do_not_rank_by_norm(
    stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = ExpertStats.load(stats)
    for name in ("wnorm", "reap_sum", "ean_sum"):
        loaded.fields[name][2] = 0.0
    loaded.save(tmp_path / "counts")
    for recipe in ("v5-coder", "v3", "reap", "ean"):
        assert main(["map", str(tmp_path / "counts"), "--recipe", recipe, "--dry-run"]) == 3
        assert "never measured" in capsys.readouterr().err
    assert main(["map", str(tmp_path / "counts"), "--recipe", "frequency", "--dry-run"]) == 0
