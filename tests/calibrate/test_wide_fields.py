"""Wide fields of the statistics file: sums per neuron and per pair of experts, beside one number per expert."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_stats_file import equal, stats_of

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.merge import merge
from trimoe.calibrate.stats.reference import export_reference, import_reference
from trimoe.errors import StatsError


def wide_stats(seed: int) -> ExpertStats:
    stats = stats_of(
        seed,
        model="m",
        tokens={"class0": 3, "class1": 4},
        masked_tokens={"class0": [1, 0, 2]},
        moe_layers=[0, 1, 2],
        merge={"contrib_max": "max", "peak": "max", "out_mean_norm": "none"},
    )
    rng = np.random.default_rng(seed)
    stats.fields.update({name: rng.random((2, 3, 4)) for name in ("contrib_max", "peak", "out_mean_norm")})
    stats.wide.update(neuron_act=rng.random((2, 3, 4, 5)), coactivation=rng.random((2, 3, 4, 4)))
    return stats


def test_wide_fields_live_in_the_same_file(tmp_path: Path) -> None:
    stats = wide_stats(1)
    stats.save(tmp_path / "a")
    loaded = ExpertStats.load(tmp_path / "a")
    assert equal(loaded, stats)
    assert loaded.shape == (2, 3, 4)
    assert {name: array.shape for name, array in loaded.wide.items()} == {
        "neuron_act": (2, 3, 4, 5),
        "coactivation": (2, 3, 4, 4),
    }
    assert all((loaded.wide[n] == stats.wide[n]).all() for n in stats.wide)
    assert loaded.content_hash == stats.content_hash
    stats.wide["neuron_act"][0, 0, 0, 0] += 1
    assert loaded.content_hash != stats.content_hash
    assert (loaded.select(["class1"]).wide["coactivation"] == loaded.wide["coactivation"][1:]).all()


def test_neuron_sums_survive_export_and_import(tmp_path: Path) -> None:
    stats = wide_stats(2)
    exported = export_reference(stats)
    assert len(exported["categories"]["class0"]["0"][3]["neuron_act"]) == 5
    (tmp_path / "x.json").write_text(json.dumps(exported))
    back = import_reference(tmp_path / "x.json")
    assert (back.wide["neuron_act"] == stats.wide["neuron_act"]).all()
    assert set(back.wide) == {"neuron_act"}
    exported["categories"]["class1"]["2"][1]["neuron_act"] = [1.0]
    (tmp_path / "y.json").write_text(json.dumps(exported))
    with pytest.raises(StatsError, match="neuron_act of class class1 layer 2 expert 1 is not a list"):
        import_reference(tmp_path / "y.json")


def test_merging_follows_what_the_file_says_of_its_fields() -> None:
    one, two = wide_stats(1), wide_stats(2)
    merged = merge([one, two])
    assert "out_mean_norm" not in merged.fields, "a norm of a mean is neither a sum nor a maximum"
    assert merged.metadata["left_out"] == ["out_mean_norm"]
    for name in ("contrib_max", "peak"):
        assert (merged.fields[name] == np.maximum(one.fields[name], two.fields[name])).all()
    for name in ("neuron_act", "coactivation"):
        assert (merged.wide[name] == one.wide[name] + two.wide[name]).all()
    assert merged.metadata["masked_tokens"] == {"class0": [2, 0, 4]}
    assert merged.metadata["moe_layers"] == [0, 1, 2]
    assert "out_mean_norm" in merge([one]).fields
