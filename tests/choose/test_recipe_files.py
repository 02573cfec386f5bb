"""Recipes and maps as files: what is refused, and by which words."""

import json
from pathlib import Path

import numpy as np
import pytest

from trimoe.choose.dropmap import DropMap
from trimoe.choose.override import read_floors, read_force_keep
from trimoe.choose.recipe import load_recipe, names, parse_recipe
from trimoe.choose.select import make_map
from trimoe.errors import BadInput, MapError, RecipeError, StatsError
from trimoe.measure.stats import ExpertStats


def test_every_shipped_recipe_is_valid_and_says_what_it_is() -> None:
    assert {"v3", "v4", "v5", "v5-coder", "c1", "c11", "c6v3lcb", "reap", "ean", "frequency", "random"} <= set(names())
    for name in names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "x"\nprotect = 3', "protect"),
        ('name = "x"\nprotect_top = "16"', "protect_top"),
        ('name = "x"\nprotect_top = "1/0"', "protect_top"),
        ('name = "x"\nprotect_top = "3/2"', "protect_top"),
        ('name = "x"\nprotect_top = -1', "protect_top"),
        ('name = "x"\nprotect_top = true', "protect_top"),
        ('name = "x"\nprotect_top = 1.5', "protect_top"),
        ('name = "x"\naggregate = "median"', "aggregate"),
        ('name = "x"\ncriterion = "magic"', "criterion"),
        ('name = "x"\nalpha = nan', "alpha"),
        ('name = "x"\nclass_weights = { code = -1 }', "class_weights"),
        ('name = "x"\noutliers = { mode = "median", limit = 0 }', "limit"),
        ('name = "x"\nfloor = { clamp = [1, 2], low = 3 }', "floor.low"),
        ("drop = 1", "name"),
        ("name = ", "TOML"),
    ],
)
def test_a_bad_recipe_is_refused_by_key(text: str, key: str) -> None:
    with pytest.raises(RecipeError, match=key):
        parse_recipe(text, "mine")


def test_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\ndrop = "1/4"\n')
    assert load_recipe(str(tmp_path / "mine.toml")).drop == "1/4"
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not text"):
        load_recipe(str(tmp_path / "raw.toml"))


def test_floor_and_force_keep_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ('{"floor_per_layer": {"0": 3, "1": 4}}', '{"0": 3, "1": 4}'):
        file.write_text(text)
        assert read_floors(file) == [3, 4]
    for text in ("[]", "{}", '{"1": 3}', '{"0": 1.5}', '{"0": true}', '{"0": -1}', "{"):
        file.write_text(text)
        with pytest.raises(RecipeError):
            read_floors(file)
    for text in ("0:3\n\n0:3 # twice\n1:0", '{"0": [3], "1": [0]}'):
        file.write_text(text)
        assert read_force_keep(file) == {0: [3], 1: [0]}
    for text in ("0", "a:b", "0:1:2", "-1:2", "{", '{"0": ["3"]}', '{"x": [3]}', '{"0": 3}'):
        file.write_text(text)
        with pytest.raises(BadInput):
            read_force_keep(file)


def test_map_round_trip(tmp_path: Path) -> None:
    made = DropMap({0: (1, 3), 1: (0, 2)}, 4, {"model": "m"})
    made.save(tmp_path / "map.json")
    assert DropMap.load(tmp_path / "map.json") == made
    (tmp_path / "bare.json").write_text('{"0": [3, 1], "1": [2, 0]}')
    bare = DropMap.load(tmp_path / "bare.json")
    assert (bare.drop, bare.num_experts, bare.content_hash) == (made.drop, None, made.content_hash)
    assert made.keep(0) == [0, 2]


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "3", '{"drop": []}', '{"drop": {"0": [1.0]}}', '{"drop": {"0": [true]}}', '{"drop": {"00": [1]}}',
     '{"drop": {"-1": [1]}}', '{"drop": {"0": [1]}, "num_experts": "4"}', '{"drop": {"0": [1]}, "metadata": []}'],
)  # fmt: skip
def test_a_malformed_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(MapError):
        DropMap.load(tmp_path / "map.json")


@pytest.mark.parametrize(
    ("drop", "experts", "word"),
    [
        ({0: (1,)}, 4, "layers"),
        ({0: (1,), 1: (1,), 2: (1,)}, 4, "layers"),
        ({0: (1, 1), 1: (0, 2)}, 4, "twice"),
        ({0: (4,), 1: (1,)}, 4, "not exist"),
        ({0: (-1,), 1: (1,)}, 4, "not exist"),
        ({0: (1,), 1: (1, 2)}, 4, "unequal"),
        ({0: (0, 1, 2), 1: (0, 1, 2)}, 4, "fewer experts"),
        ({0: (1,), 1: (1,)}, 8, "another number"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(drop: dict[int, tuple[int, ...]], experts: int, word: str) -> None:
    with pytest.raises(MapError, match=word):
        DropMap(drop, 4).validate(2, experts, 2)


def test_a_map_of_another_model_is_refused() -> None:
    made = DropMap({0: (1,)}, 4, {"model": "one"})
    made.validate(1, 4, 2, "one")
    with pytest.raises(MapError, match="another model"):
        made.validate(1, 4, 2, "two")


def stats_of(classes: tuple[str, ...] = ("generic_code",), model: str = "m", experts: int = 8) -> ExpertStats:
    values = np.arange(len(classes) * 2 * experts, dtype=float).reshape(len(classes), 2, experts) + 1
    return ExpertStats(classes, {n: values.copy() for n in ("tc", "wnorm", "reap_sum", "ean_sum")}, {"model": model})


def test_statistics_that_do_not_fit_are_refused() -> None:
    coder, one = load_recipe("v5-coder"), stats_of()
    with pytest.raises(StatsError, match="another model"):
        make_map(one, coder, base_stats=stats_of(model="other"))
    with pytest.raises(StatsError, match="another shape"):
        make_map(one, coder, base_stats=stats_of(experts=4))
    with pytest.raises(StatsError, match="no generic class"):
        make_map(stats_of(("targeted_a",)), coder)
    with pytest.raises(RecipeError, match="no class of the statistics any weight"):
        make_map(stats_of(("targeted_a",)), load_recipe("v4"))
    with pytest.raises(StatsError, match="no field reap_sum"):
        make_map(ExpertStats(("a",), {"tc": np.ones((1, 2, 4))}), load_recipe("reap"))
    with pytest.raises(MapError, match="layer that does not exist"):
        make_map(one, coder, force_keep={2: [0]})
    with pytest.raises(MapError, match="expert that does not exist"):
        make_map(one, coder, force_keep={1: [8]})
    with pytest.raises(MapError, match="more experts are forced"):
        make_map(one, coder, keep=2, force_keep={1: [0, 1, 2]})


@pytest.mark.parametrize("mode", ["median", "zero", "drop"])
def test_a_broken_cell_never_wins(mode: str) -> None:
    """Not a number, infinite and huge cells sort to the top if they are ranked; repaired they do not."""
    stats = stats_of(("a", "b"))
    for expert, bad in ((0, np.nan), (1, np.inf), (2, 1e14)):
        stats.fields["wnorm"][:, :, expert] = bad
    recipe = load_recipe("c1").model_copy(update={"protect_top": 0})
    recipe = parse_recipe(f'name = "x"\noutliers = {{ mode = "{mode}", limit = 1e4 }}', "x")
    made = make_map(stats, recipe, keep=4)
    assert made.metadata["imputed_cells"] == 12
    assert made.metadata["extreme_cells_ranked"] == 0
    assert {6, 7} <= set(made.keep(0)), "the best sound experts stay"
    json.dumps(made.as_json(), allow_nan=False)
