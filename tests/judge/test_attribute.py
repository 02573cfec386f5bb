"""Where items were lost along a chain, and the experts that would bring them back: also end to end on a real model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimoe.bench.bench import Verdict
from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.dropmap import DropMap
from trimoe.choose.protect import read_force_keep
from trimoe.cli.main import main
from trimoe.errors import Refused, StatsError, UsageError
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.judge.chain import attribute_chain
from trimoe.judge.lost_experts import FIELD, force_keep, suggest, write_traces

CAUSES: dict[str, Any] = {"1": "correct", "w": "wrong", "l": "loop"}


def put(path: Path, name: str, answers: str, bench: str = "b", version: int = 1, **sampler: Any) -> None:
    with RunLog(path) as log:
        run = log.start(name, bench, {"name": bench, "version": version}, f"hash of {name}", sampler, {})
        log.add(
            run,
            [
                (Sample(f"d{i}", i, f"q{i}", f"reply {i}", "stop", 1, 1), Verdict(a == "1", CAUSES[a]))
                for i, a in enumerate(answers)
            ],
            1,
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    put(path, "base", "1111111www", engine="trimoe")
    put(path, "pruned", "11111ll1ww", engine="trimoe")
    put(path, "quant", "1111www1ww", engine="trimoe")
    put(path, "served", "111ww1www1", engine="llamacpp")
    return path


def test_every_item_is_lost_where_it_was_right_last(path: Path) -> None:
    chain, _ = attribute_chain([path], ["base", "pruned", "quant", "served"])
    (bench,) = chain.benches
    assert bench.correct == (7, 6, 5, 5)
    first, second, third = bench.steps
    assert first.lost == (("d5", "loop"), ("d6", "loop"))
    assert (first.gained, first.stays) == ((("d7", "wrong"),), ("d6",))  # d5 came back later
    assert (second.lost, second.stays) == ((("d4", "wrong"),), ("d4",))
    assert (third.stays, [doc for doc, _ in third.gained]) == (("d3", "d7"), ["d5", "d9"])
    assert [step.changed for step in bench.steps] == [(), (), ("engine trimoe against llamacpp",)]
    assert sum(len(s.gained) - len(s.lost) for s in bench.steps) == bench.correct[-1] - bench.correct[0]


def test_any_chain_adds_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    names = ["a", "b", "c", "d"]
    for name in names:
        put(tmp_path / "r.db", name, "".join(rng.choice(["1", "w"], 200)))
    (bench,) = attribute_chain([tmp_path / "r.db"], names)[0].benches
    net = [len(s.gained) - len(s.lost) for s in bench.steps]
    assert net == list(np.diff(bench.correct))
    stays = [doc for s in bench.steps for doc in s.stays]
    assert len(stays) == len(set(stays))
    for s in bench.steps:
        assert set(s.stays) <= {doc for doc, _ in s.lost}


def test_refusals(path: Path) -> None:
    for names in (["base"], ["base", "base"], ["base", "none"]):
        with pytest.raises(UsageError):
            attribute_chain([path], names)
    with pytest.raises(UsageError, match="no such bench"):
        attribute_chain([path], ["base", "quant"], ["other"])
    put(path, "new", "11", version=2)
    with pytest.raises(Refused, match="different questions"):
        attribute_chain([path], ["base", "new"])
    assert main(["attribute", str(path), "--chain", "base,pruned", "--map", "map.json"]) == 2


def stats(lost: Sequence[float], kept: Sequence[float]) -> ExpertStats:
    return ExpertStats(("lost", "kept"), {FIELD: np.array([[lost], [kept]], dtype=float)})


def test_only_experts_that_the_lost_items_needed_more_are_suggested() -> None:
    drop = DropMap({0: (0, 1, 2)}, 6)
    #              dropped: more on lost | more on kept | hardly used
    found = suggest(stats([30, 20, 1, 4, 15, 30], [10, 30, 1, 9, 20, 30]), drop, 9)
    (pin,) = found.pins
    assert (pin.layer, pin.expert, pin.instead) == (0, 0, 3)
    assert (pin.lost, pin.kept, pin.gain) == (pytest.approx(0.3), pytest.approx(0.1), pytest.approx(0.26))
    assert (found.gone_lost, found.gone_kept) == (pytest.approx(0.51), pytest.approx(0.41))
    assert suggest(stats([1, 1, 1, 5, 5, 5], [1, 1, 1, 5, 5, 5]), drop, 9).pins == ()
    with pytest.raises(StatsError, match="no class lost"):
        suggest(ExpertStats(("a",), {FIELD: np.ones((1, 1, 6))}), drop, 9)


def test_the_file_is_read_back_whatever_a_run_is_called(tmp_path: Path) -> None:
    found = suggest(stats([30, 20, 1, 4, 15, 30], [10, 10, 1, 9, 20, 30]), DropMap({0: (0, 1, 2)}, 6), 9)
    file = tmp_path / "keep.txt"
    file.write_text(force_keep(found, ["base\n0:5", "pruned\r0:4"]))
    assert read_force_keep(file) == {0: [0, 1]}


def test_traces_hold_right_replies_of_the_base_alone(path: Path, tmp_path: Path) -> None:
    chain, runs = attribute_chain([path], ["base", "pruned"])
    chosen, lost, kept = write_traces(chain, runs, tmp_path / "traces")
    assert (lost, kept) == (2, 5)
    from trimoe.calibrate.text.calibration import CalibrationSet

    texts = CalibrationSet.load(chosen).texts()
    assert {name: len(items) for name, items in texts.items()} == {"lost": 2, "kept": 5}
    put(path, "twin", "1111111www", engine="trimoe")
    chain, runs = attribute_chain([path], ["base", "twin"])
    with pytest.raises(UsageError, match="lost 0 items"):
        write_traces(chain, runs, tmp_path / "none")


@pytest.mark.slow
def test_the_suggestion_is_accepted_and_changes_the_map(tmp_path: Path) -> None:
    """Base and a random prune of the bundled model, evaluated; the lost items name experts; the map takes them back."""
    from helpers.evaluation import run_model
    from trimoe.calibrate.engine import calibrate
    from trimoe.choose.recipe import load_recipe
    from trimoe.choose.select import make_map
    from trimoe.cut.prune import prune
    from trimoe.model import tiny

    log, where = tmp_path / "runs.db", tmp_path / "map.json"
    chosen = tmp_path / "set.yaml"
    chosen.write_text("name: s\nclasses:\n  generic_math: [{kind: tiny, domain: math, count: 8}]\n")
    measured = calibrate(tiny.path(), chosen, tmp_path / "stats.safetensors")
    made = make_map(measured, load_recipe("random-0"), keep=22)
    made.save(where)
    prune(tiny.path(), made, tmp_path / "pruned")
    for name, model in (("base", tiny.path()), ("pruned", tmp_path / "pruned")):
        run_model(model, ["tiny-code"], log, name=name, limit=24)
    keep, after = tmp_path / "keep.txt", tmp_path / "after.json"
    assert (
        main(
            [
                "attribute",
                str(log),
                "--chain",
                "base,pruned",
                "--model",
                str(tiny.path()),
                "--map",
                str(where),
                "-o",
                str(keep),
                "--most",
                "6",
            ]
        )
        == 0
    )
    pins = read_force_keep(keep)
    assert 0 < sum(map(len, pins.values())) <= 6
    assert (
        main(
            [
                "map",
                str(tmp_path / "stats.safetensors"),
                "--recipe",
                "random-0",
                "--keep",
                "22",
                "--force-keep",
                str(keep),
                "-o",
                str(after),
            ]
        )
        == 0
    )
    changed = DropMap.load(after)
    for layer, ids in pins.items():
        assert set(ids) <= set(made.drop[layer])
        assert not set(ids) & set(changed.drop[layer])
    assert {len(ids) for ids in changed.drop.values()} == {len(ids) for ids in made.drop.values()}
