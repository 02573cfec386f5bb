"""The neurons that a map keeps are those that contribute most, and nothing else about the map changes."""

import numpy as np
import pytest

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.choose import choose
from trimoe.choose.combine import combine, compose
from trimoe.choose.dropmap import DropMap
from trimoe.choose.narrowing import Narrowing, to_ranges
from trimoe.errors import MapError, StatsError

LAYERS, EXPERTS, WIDTH = 2, 6, 32


@pytest.fixture
def stats() -> ExpertStats:
    """Two classes of 10 and 1,000 tokens."""
    rng = np.random.default_rng(0)
    shape = (2, LAYERS, EXPERTS)
    fields = {name: rng.random(shape) for name in ("tc", "cc", "wnorm", "rnorm", "reap_sum", "ean_sum")}
    fields["tokens"] = np.broadcast_to(np.array([10.0, 1000.0])[:, None, None], shape).copy()
    contribution = rng.random((*shape, WIDTH)) * fields["tokens"][..., None]
    return ExpertStats(("a", "b"), fields, {"neuron_unit": 1}, {"neuron_contrib": contribution})


def test_the_best_neurons_by_mean_contribution_are_kept(stats: ExpertStats) -> None:
    made = choose(stats, recipe="reap", keep=4, width=24)
    assert made.narrow is not None
    assert made.drop == choose(stats, recipe="reap", keep=4).drop
    score = (stats.wide["neuron_contrib"] / np.array([10.0, 1000.0])[:, None, None, None]).sum(0)
    for layer in range(LAYERS):
        assert set(made.narrow.neurons[layer]) == set(made.keep(layer))
        for expert, kept in made.narrow.neurons[layer].items():
            removed = sorted(set(range(WIDTH)) - set(kept))
            assert min(score[layer, expert][list(kept)]) >= max(score[layer, expert][removed])
            assert list(kept) == sorted(kept)


def test_a_class_without_weight_has_no_say(stats: ExpertStats) -> None:
    made = choose(stats, recipe="reap", keep=4, width=8, class_weights={"a": 1.0, "b": 0.0})
    assert made.narrow is not None
    best = np.argsort(-stats.wide["neuron_contrib"][0, 1, made.keep(1)[0]])[:8]
    assert set(made.narrow.of(1, made.keep(1)[0])) == set(best.tolist())


def test_neurons_that_are_stored_together_are_kept_together(stats: ExpertStats) -> None:
    made = choose(stats, recipe="reap", keep=4, width=16, neuron_group=8)
    assert made.narrow is not None
    for experts in made.narrow.neurons.values():
        for kept in experts.values():
            assert kept == tuple(first + i for first in kept[::8] for i in range(8))


@pytest.mark.parametrize("width", [0, 12, 40])
def test_a_width_that_engines_cannot_run_is_refused(stats: ExpertStats, width: int) -> None:
    with pytest.raises(MapError, match=f"{width} neurons wide") as refused:
        choose(stats, recipe="reap", keep=4, width=width)
    assert refused.value.expected == "a multiple of 8 up to 32"


def test_the_full_width_is_no_narrowing(stats: ExpertStats) -> None:
    assert choose(stats, recipe="reap", keep=4, width=WIDTH) == choose(stats, recipe="reap", keep=4)


def test_statistics_without_neurons_name_the_option(stats: ExpertStats) -> None:
    del stats.wide["neuron_contrib"]
    with pytest.raises(StatsError, match="nothing about neurons") as refused:
        choose(stats, recipe="reap", keep=4, width=16)
    assert "--neurons" in str(refused.value)


def test_two_narrowings_compose_in_ids_of_the_original(stats: ExpertStats) -> None:
    first = choose(stats, recipe="reap", keep=4, width=16)
    drop = dict.fromkeys(range(LAYERS), (1,))
    neurons = {layer: dict.fromkeys((0, 2, 3), (0, 5, 15)) for layer in range(LAYERS)}
    both = compose(first, DropMap(drop, 4, narrow=Narrowing(neurons, 16)))
    assert both.narrow is not None
    assert first.narrow is not None
    for layer in range(LAYERS):
        kept = first.keep(layer)
        assert both.keep(layer) == [kept[0], kept[2], kept[3]]
        for expert in both.keep(layer):
            ids = first.narrow.of(layer, expert)
            assert both.narrow.of(layer, expert) == (ids[0], ids[5], ids[15])
    dropped_only = compose(first, DropMap(drop, 4))
    assert dropped_only.narrow is not None
    assert dropped_only.narrow.kept == 16
    with pytest.raises(MapError, match="another width"):
        compose(first, DropMap(drop, 4, narrow=Narrowing(neurons, 32)))
    with pytest.raises(MapError, match="cannot be combined"):
        combine([first, first], "union")


def test_ranges_read_back() -> None:
    assert to_ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
