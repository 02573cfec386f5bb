"""What holds for any statistics and any recipe."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.protect import class_minimum, forced
from trimoe.choose.recipe import Floor, Recipe, class_matches, kept, load_recipe, names, resolve
from trimoe.choose.score import AGGREGATES, descending, recipe_scores
from trimoe.choose.select import make_map
from trimoe.errors import MapError

CLASSES = ("generic_code", "generic_math", "targeted_lcb")
FIELDS = ("tc", "wnorm", "reap_sum", "ean_sum")


def stats_of(seed: int, layers: int = 2, experts: int = 8) -> ExpertStats:
    """Positive values without ties."""
    rng = np.random.default_rng(seed)
    return ExpertStats(CLASSES, {n: rng.random((3, layers, experts)) * 100 + 1 for n in FIELDS}, {})


seeds = st.integers(0, 10_000)
recipes = st.sampled_from(
    [n for n in names() if n not in ("random", "recon") and not load_recipe(n).positions]  # others need more fields
)


@given(seeds, recipes, st.integers(1, 8), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_budget_is_exact_and_the_same_call_gives_the_same_map(seed: int, name: str, keep: int, experts: int) -> None:
    stats, keep = stats_of(seed, experts=experts), min(keep, experts)
    made = make_map(stats, load_recipe(name), keep=keep)
    made.validate(2, experts, 1)
    assert {len(ids) for ids in made.drop.values()} == {experts - keep}
    again = make_map(stats, load_recipe(name), keep=keep)
    assert again.as_dict() == made.as_dict()


@given(seeds, st.integers(0, 8), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_best_are_protected(seed: int, top: int, keep: int) -> None:
    stats = stats_of(seed)
    recipe = Recipe(name="r", protect_top=top, floor=Floor(clamp=(2, 3)))
    made = make_map(stats, recipe, keep=keep)
    score = recipe_scores(stats, recipe).aggregate
    if top + 3 <= keep:
        for layer in range(2):
            assert not set(descending(score[layer])[:top]) & set(made.drop[layer])


@given(seeds, recipes, st.permutations(range(8)))
@settings(max_examples=60, deadline=None)
def test_renumbering_the_experts_renumbers_the_map(seed: int, name: str, order: list[int]) -> None:
    stats = stats_of(seed)
    recipe = load_recipe(name)
    if recipe.normalize == "rank":
        # weighted ranks are small multiples of one step and tie; a mean of raw scores does not
        recipe = msgspec.structs.replace(recipe, normalize="mean", breadth_bonus=0.5)
    moved = ExpertStats(CLASSES, {n: a[:, :, order] for n, a in stats.fields.items()}, {})
    one, other = make_map(stats, recipe, keep=5), make_map(moved, recipe, keep=5)
    for layer in range(2):
        assert sorted(order[e] for e in other.drop[layer]) == list(one.drop[layer])


@given(seeds, st.integers(0, 6), st.integers(2, 7))
@settings(max_examples=80, deadline=None)
def test_class_minimum_holds_or_is_reported(seed: int, least: int, drop: int) -> None:
    rng = np.random.default_rng(seed)
    score, best = rng.random(8), rng.integers(0, 2, 8)
    owners = {"a": best == 0, "b": best == 1}
    gone = {int(e) for e in np.argsort(score, kind="stable")[:drop]}
    after, short = class_minimum(gone, set(), score, owners, {"a": least, "b": 1})
    assert len(after) == len(gone)
    for name, n in (("a", least), ("b", 1)):
        left = sum(1 for e in range(8) if owners[name][e] and e not in after)
        assert (left < n) == (name in short)
        assert name not in short or short[name] == left
    before = {n: sum(1 for e in range(8) if owners[n][e] and e not in gone) for n in owners}
    if int(owners["a"].sum()) >= least and before["b"] - (least - before["a"]) >= 1 and before["a"] >= 0:
        assert "a" not in short, "enough experts to swap, so the minimum is reached"


@given(seeds, st.lists(st.integers(0, 7), max_size=5, unique=True))
@settings(max_examples=60, deadline=None)
def test_forced_experts_stay_at_the_same_budget(seed: int, ids: list[int]) -> None:
    stats = stats_of(seed)
    made = make_map(stats, load_recipe("v4"), keep=5, force_keep={1: ids})
    assert not set(ids) & set(made.drop[1])
    assert [len(made.drop[i]) for i in (0, 1)] == [3, 3]
    assert made.drop[0] == make_map(stats, load_recipe("v4"), keep=5).drop[0]
    gone = set(made.drop[1])
    assert forced(gone, np.zeros(8), ids, 1) == gone, "nothing left to do"


@given(seeds, st.sampled_from(sorted(AGGREGATES)), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_better_everywhere_is_better_in_the_aggregate(seed: int, how: str, breadth: float) -> None:
    r = np.sort(np.random.default_rng(seed).random((3, 1, 6)), axis=-1)
    w = np.array([1.0, 2.0, 3.0])[:, None, None]
    total = AGGREGATES[how](r, w) + breadth * r.mean(0)
    assert (np.diff(total[0]) >= -1e-12).all()


@given(st.integers(0, 400), st.integers(1, 400), st.integers(1, 512))
def test_shares_scale(a: int, b: int, whole: int) -> None:
    if a <= b:
        assert 0 <= resolve(f"{a}/{b}", whole) <= whole
        assert resolve(f"{a}/{b}", b) == a
        assert kept(f"{a}/{b}", b) == b - a
        assert kept(f"{a}/{b}", whole) == resolve(f"{b - a}/{b}", whole)


def test_the_published_numbers_follow_from_the_shares() -> None:
    recipe = load_recipe("v5-coder")
    assert recipe.floor is not None
    for experts, keep, protect, clamp in ((128, 98, 16, [75, 95]), (32, 24, 4, [18, 23])):
        assert kept(recipe.drop, experts) == keep
        assert resolve(recipe.protect_top, experts) == protect
        assert [resolve(c, keep) for c in recipe.floor.clamp] == clamp


@given(seeds, recipes, st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_layer_without_experts_is_not_in_the_map_and_changes_nothing(seed: int, name: str, dense: int) -> None:
    stats, recipe, with_experts = stats_of(seed, layers=3), load_recipe(name), [i for i in range(4) if i != dense]
    fields = {n: np.insert(a, dense, 0, axis=1) for n, a in stats.fields.items()}
    made = make_map(ExpertStats(CLASSES, fields, {"moe_layers": with_experts}), recipe, keep=5)
    plain = make_map(stats, recipe, keep=5)
    assert list(made.drop) == with_experts
    assert list(made.drop.values()) == list(plain.drop.values())
    assert made.metadata["layers"] == plain.metadata["layers"]
    assert {**made.explain(with_experts[2], 3), "layer": 2} == plain.explain(2, 3)
    with pytest.raises(MapError, match="no expert") as caught:
        made.explain(dense, 3)
    assert "has no experts" in str(caught.value)


def test_random_depends_on_seed_and_layer_only() -> None:
    one, two = stats_of(1, layers=3, experts=32), stats_of(2, layers=3, experts=32)
    made = [make_map(s, load_recipe(n)).drop for s, n in ((one, "random-1"), (two, "random-1"), (one, "random-2"))]
    assert made[0] == made[1] != made[2]
    assert len(set(made[0].values())) == 3


def test_classes_are_named_by_pattern() -> None:
    assert class_matches("generic_code", "code")
    assert class_matches("targeted_code", "targeted_*")
    assert not class_matches("targeted_code", "code")
    recipe = load_recipe("v5-coder")
    assert [recipe.weight_of(c) for c in ("generic_code", "code", "targeted_x", "math")] == [3.0, 3.0, 2.0, 1.0]
    assert load_recipe("v4").weight_of("targeted_x") is None
