"""Recipes and maps as files: what is refused, and by which words."""

import json
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimoe.calibrate.stats.criteria import CRITERIA
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.dropmap import DropMap
from trimoe.choose.floor import read_floors
from trimoe.choose.protect import read_force_keep
from trimoe.choose.recipe import _covers, load_recipe, names, parse_recipe, validated, weight_for
from trimoe.choose.select import make_map
from trimoe.errors import BadInput, MapError, RecipeError, StatsError


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
    [
        "[]",
        "{}",
        "3",
        '{"drop": []}',
        '{"drop": {"0": [1.0]}}',
        '{"drop": {"0": [true]}}',
        '{"drop": {"00": [1]}}',
        '{"drop": {"-1": [1]}}',
        '{"drop": {"0": [1]}, "num_experts": "4"}',
        '{"drop": {"0": [1]}, "metadata": []}',
        '{"drop": {"0": [1], "0": [2]}}',
        '{"drop": {"0": [1]}, "metadata": {"x": NaN}}',
        '{"drop": {"0": [1]}, "metadata": {"x": 1e400}}',
        '{"drop": {"0": [1]}, "metadata": {"model": 5}}',
        '{"drop": {"' + "1" * 5000 + '": [1]}}',
    ],
)
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
    recipe = parse_recipe(f'name = "x"\noutliers = {{ mode = "{mode}", limit = 1e4 }}', "x")
    made = make_map(stats, recipe, keep=4)
    assert made.metadata["imputed_cells"] == 12
    assert made.metadata["extreme_cells_ranked"] == 0
    assert {6, 7} <= set(made.keep(0)), "the best sound experts stay"
    json.dumps(made.as_dict(), allow_nan=False)


PATTERNS = ["*", "a*", "*a", "a?", "?a", "ab*", "a*b", "a**", "??", "*b*", "ab", "a", "a?*", "*?", "b[ab]"]
WORDS = ["".join(w) for n in range(5) for w in product("abc", repeat=n)]


def test_a_pattern_that_covers_another_really_does() -> None:
    """Against all words of up to four letters: never wrongly true, and true for every pair without brackets."""
    for wide, narrow in product(PATTERNS, repeat=2):
        truth = all(fnmatchcase(w, wide) for w in WORDS if fnmatchcase(w, narrow))
        assert _covers(wide, narrow) <= truth, (wide, narrow)
        if "[" not in wide + narrow:
            assert _covers(wide, narrow) == truth, (wide, narrow)


@given(
    st.dictionaries(st.sampled_from([*PATTERNS, "generic_a", "g*"]), st.sampled_from([0.0, 1.0, 2.0]), max_size=6),
    st.sampled_from(["a", "ab", "aab", "b", "ba", "generic_a", "generic_ab"]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_class_weights_does_not_matter(weights: dict, name: str, random: Random) -> None:
    items = list(weights.items())
    random.shuffle(items)

    def found(order: dict) -> object:
        try:
            return weight_for(name, order)
        except RecipeError as exc:
            return str(exc)

    assert found(weights) == found(dict(items)) == found(json.loads(json.dumps(weights, sort_keys=True)))


def test_names_before_patterns_and_narrow_before_wide() -> None:
    weights = {"*": 1.0, "targeted_*": 0.0, "targeted_lcb*": 2.0, "targeted_lcb_x": 5.0, "code": 3.0}
    expected = {"math": 1, "targeted_he": 0, "targeted_lcb_y": 2, "targeted_lcb_x": 5, "code": 3, "generic_code": 3}
    assert {name: weight_for(name, weights) for name in expected} == expected
    assert weight_for("generic_code", {**weights, "generic_code": 4.0}) == 4
    assert weight_for("generic_code", {**weights, "generic_*": 7.0}) == 3
    assert weight_for("math", {"code": 1.0}) is None


def test_patterns_that_contradict_each_other_are_named() -> None:
    weights = {"*_code": 2.0, "generic_*": 1.0}
    assert weight_for("generic_math", weights) == 1
    with pytest.raises(RecipeError, match=r"(?s)generic_code.*\*_code = 2.*generic_\* = 1"):
        weight_for("generic_code", weights)
    assert weight_for("generic_code", {"*_code": 2.0, "generic_*": 2.0}) == 2
    assert weight_for("generic_code", {**weights, "generic_code": 5.0}) == 5


@pytest.mark.parametrize("name", [name for name in names() if not load_recipe(name).positions])
def test_a_recorded_recipe_gives_the_same_map(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    classes = ("generic_code", "generic_math", "generic_multilingual", "targeted_he", "targeted_lcb_1")
    fields = {"tc": random.integers(1, 99, (5, 2, 16)).astype(float), "wnorm": random.random((5, 2, 16)) * 40}
    needed = {field for fields_of, *_ in CRITERIA.values() for field in fields_of}
    fields |= {field: random.random((5, 2, 16)) for field in needed - set(fields)}
    stats = ExpertStats(classes, fields, {})
    base = ExpertStats(classes[:3], {k: v[:3] for k, v in fields.items()}, {})
    made = make_map(stats, load_recipe(name), base_stats=base)
    made.save(tmp_path / "map.json")
    recorded = DropMap.load(tmp_path / "map.json").metadata["recipe"]
    again = make_map(stats, validated(recorded, "recorded"), base_stats=base)
    assert (again.drop, again.metadata["classes"]) == (made.drop, made.metadata["classes"])
