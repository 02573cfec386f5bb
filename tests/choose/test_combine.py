"""Union, intersection and composition: against set algebra and against cutting twice; refusals by word."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.combine import combine, compose
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main
from trimoe.errors import MapError

EXPERTS, LAYERS = 10, 3


@st.composite
def maps(draw: st.DrawFn, experts: int = EXPERTS, most: int = 8) -> DropMap:
    """A map of three layers that drops equally many in each."""
    count = draw(st.integers(0, most))
    ids = st.permutations(range(experts))
    return DropMap({i: tuple(sorted(draw(ids)[:count])) for i in range(LAYERS)}, experts)


@given(given_maps=st.lists(maps(), min_size=2, max_size=4), data=st.data())
def test_union_and_intersection(given_maps: list[DropMap], data: st.DataObject) -> None:
    for how, algebra in (("union", set.union), ("intersection", set.intersection)):
        kept = {i: algebra(*(set(m.keep(i)) for m in given_maps)) for i in range(LAYERS)}
        most = max(map(len, kept.values()))
        wanted = data.draw(st.none() | st.integers(max(most, 1), EXPERTS))
        if most == 0 and wanted is None:
            with pytest.raises(MapError, match="no expert in common"):
                combine(given_maps, how)
            continue
        made = combine(given_maps, how, keep=wanted)
        for layer in range(LAYERS):
            have = set(made.keep(layer))
            assert have >= kept[layer], "nothing that the combination keeps is lost"
            assert len(have) == (most if wanted is None else wanted)
            filled = made.metadata["filled"].get(str(layer), [])
            assert have - kept[layer] == set(filled)
            votes = [sum(e in m.keep(layer) for m in given_maps) for e in range(EXPERTS)]
            out = [e for e in range(EXPERTS) if e not in have]
            assert all((-votes[a], a) < (-votes[b], b) for a, b in itertools.product(filled, out))
        assert combine(given_maps[::-1], how, keep=wanted) == made, "the order of the maps does not matter"


def test_scores_decide_among_equal_votes() -> None:
    one, two = DropMap({0: (0, 1, 2, 3), 1: (0, 1, 2, 3)}, 6), DropMap({0: (0, 1, 2, 3), 1: (2, 3, 4, 5)}, 6)
    scores = np.array([[0.1, 0.9, 0.5, np.float64("0.7"), 0, 0], [0] * 6])
    assert combine([one, two], "union").drop == {0: (2, 3), 1: (2, 3)}
    made = combine([one, two], "union", scores=scores)
    assert made.drop == {0: (0, 2), 1: (2, 3)}
    assert made.metadata["filled"] == {"0": [1, 3]}


@given(data=st.data())
def test_composition_is_cutting_twice(data: st.DataObject) -> None:
    first = data.draw(maps())
    left = EXPERTS - len(first.drop[0])
    second = data.draw(maps(left, left - 1))
    made = compose(first, second)
    for layer in range(LAYERS):
        once = np.delete(np.arange(EXPERTS), first.drop[layer])
        assert made.keep(layer) == np.delete(once, second.drop[layer]).tolist()
    third = DropMap(dict.fromkeys(range(LAYERS), (0,)), left - len(second.drop[0]))
    assert compose(made, third).drop == compose(first, compose(second, third)).drop


@pytest.mark.parametrize(
    ("given_maps", "options", "message"),
    [
        ([DropMap({0: (1,)}, 8), DropMap({0: (1,)}, 9)], {}, "different models"),
        ([DropMap({0: (1,)}, 8, {"model": "a"}), DropMap({0: (1,)}, 8, {"model": "b"})], {}, "different models"),
        ([DropMap({0: (1,)}, 8), DropMap({0: (1,), 1: (2,)}, 8)], {}, "different layers"),
        ([DropMap({0: (1,)}, 8), DropMap({0: (2,)}, 8)], {"keep": 7}, "7 experts per layer"),
        ([DropMap({0: (1,)}, 8), DropMap({0: (2,)}, 8)], {"keep": 9}, "9 experts per layer"),
        ([DropMap({0: (1,)}), DropMap({0: (2,)})], {"keep": 8}, "how many experts"),
        ([DropMap({0: (1,)}), DropMap({0: (1,)})], {"scores": np.zeros((1, 1))}, "of another model"),
        ([DropMap({3: (1,)}), DropMap({3: (1,)})], {"scores": np.zeros((3, 8))}, "of another model"),
    ],
)
def test_refusals(given_maps: list[DropMap], options: dict, message: str) -> None:
    with pytest.raises(MapError, match=message):
        combine(given_maps, "union", **options)


def test_layers_without_experts_may_be_absent() -> None:
    for other in (DropMap({1: (3,)}, 8), DropMap({0: (), 1: (3,)}, 8)):
        made = combine([DropMap({0: (), 1: (2,)}, 8), other], "intersection")
        assert made.drop == {0: (), 1: (2, 3)}
    nothing = DropMap({0: (), 1: ()}, 8)
    assert combine([nothing, nothing], "union").drop == nothing.drop


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (DropMap({0: (1,)}), DropMap({0: (0,)}), "how many experts"),
        (DropMap({0: (1,)}, 4), DropMap({0: (3,)}), "does not fit what the first leaves in layer 0"),
        (DropMap({0: (1,)}, 4), DropMap({0: (0,)}, 4), "does not fit what the first leaves"),
        (DropMap({0: (1,)}, 4), DropMap({1: (0,)}, 3), "different layers"),
    ],
)
def test_cuts_that_do_not_follow(first: DropMap, second: DropMap, message: str) -> None:
    with pytest.raises(MapError, match=message):
        compose(first, second)


# ---------------------------------------------------------------- as a user calls it


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two maps of a model of 6 experts in two layers."""
    DropMap({0: (0, 1), 1: (0, 1)}, 6, {"model": "m"}).save(tmp_path / "a.json")
    DropMap({0: (1, 2), 1: (0, 1)}, 6).save(tmp_path / "b.json")
    return tmp_path


def test_combining_from_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = (str(files / name) for name in ("a.json", "b.json", "out.json"))
    assert main(["map", "combine", a, b, "--keep-union", "-o", out]) == 0
    text = capsys.readouterr().out
    assert "keeps 5 of 6 experts in 2 layers" in text
    assert "layer 1: filled up with experts [0]" in text
    made = DropMap.load(Path(out))
    assert made.drop == {0: (1,), 1: (1,)}
    assert made.metadata["model"] == "m", "the one model that the maps name"
    assert main(["map", "combine", a, b, "--keep-intersection", "-o", str(files / "i.json"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert DropMap.load(files / "i.json").drop == {0: (1, 2), 1: (0, 1)}, "of 0 to 2 layer 0 gets back the first"
    assert data["filled"] == {"0": [0]}


def test_statistics_order_the_filling(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.array([[[5, 5, 5, 5, 5, 5], [1, 9, 5, 5, 5, 5]]], float)
    ExpertStats(("code",), {"tc": counts}, {"model": "m"}).save(files / "stats")
    command = ["map", "combine", str(files / "a.json"), str(files / "b.json"), "--keep-union"]
    options = ["--stats", str(files / "stats"), "--recipe", "frequency", "-o", str(files / "out.json")]
    assert main([*command, *options]) == 0
    assert DropMap.load(files / "out.json").drop[1] == (0,), "expert 1 is used more"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["combine", "a.json", "b.json", "-o", "o.json"], 2),
        (["combine", "a.json", "--keep-union", "-o", "o.json"], 2),
        (["combine", "a.json", "b.json", "--keep-union", "-o", "a.json"], 3),
        (["combine", "a.json", "b.json", "--keep-union", "--keep", "2", "-o", "o.json"], 3),
        (["compose", "a.json", "b.json", "-o", "o.json"], 3),
        (["recorded", "a.json", "-o", "o.json"], 3),
        (["recorded", ".", "-o", "o.json"], 3),
        ([], 2),
    ],
)
def test_refusals_by_exit_code(
    files: Path, words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    assert main(["map", *words]) == code
    assert not Path("o.json").exists()
    capsys.readouterr()


def test_the_first_word_may_be_left_out(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ExpertStats(("code",), {"tc": np.ones((1, 2, 6))}, {}).save(files / "stats")
    options = [str(files / "stats"), "--recipe", "frequency", "--keep", "4", "--json", "-o"]
    assert main(["map", *options, str(files / "one.json")]) == 0
    assert main(["map", "make", *options, str(files / "two.json")]) == 0
    assert main(["map", "--recipe", "frequency", str(files / "stats"), "--keep", "4", "--dry-run"]) == 0
    assert (files / "one.json").read_bytes() == (files / "two.json").read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize("ids", [(32,), (-1,), (3, 3), (10**30,)])
def test_ids_that_cannot_be_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(MapError, match="impossible expert"):
        combine([DropMap({0: (1,)}, 32), DropMap({0: ids}, 32)], "intersection")
