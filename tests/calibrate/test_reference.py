"""The reference JSON: nothing is lost on the way in or out without being named."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_stats_file import equal, stats_of

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.reference import export_reference, import_reference, left_out
from trimoe.cli.main import main
from trimoe.errors import StatsError


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_round_trip_of_our_own_statistics(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    stats = stats_of(2, model="fingerprint")
    stats.wide["neuron_act"] = np.random.default_rng(1).random((*stats.shape, 6))
    stats.wide["coactivation"] = np.ones((*stats.shape, 4))
    stats.save(tmp_path / "stats")
    out = tmp_path / f"out{suffix}"
    assert main(["stats", "export", str(tmp_path / "stats"), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["coactivation", "reap_sum"]
    assert main(["stats", "import", str(out), "-o", str(tmp_path / "back")]) == 0
    back = ExpertStats.load(tmp_path / "back")
    assert set(back.fields) == set(stats.fields) - {"reap_sum"}
    assert equal(stats, back, set(back.fields))
    assert back.wide.keys() == {"neuron_act"}
    assert (back.wide["neuron_act"] == stats.wide["neuron_act"]).all()
    assert back.metadata["reference"]["metadata"]["model_sha256"] == "fingerprint"


def test_every_key_of_a_file_comes_back(tmp_path: Path) -> None:
    def entry(i: int, layer: int, expert: int) -> dict[str, Any]:
        seed = 100 * i + 10 * layer + expert
        return {
            "id": expert,
            "wnorm": seed + 0.25,
            "tc": seed,
            "cc": 1,
            "wmax": seed / 7,
            "share": -0.5,
            "neuron_act": [seed * 0.1, 0.0, 1e-300],
            "hist": [seed, 2.5],
        }

    original = {
        "metadata": {
            "num_layers": 2,
            "num_experts": 3,
            "categories": ["b", "a"],
            "intermediate_size": 3,
            "wnorm_mode": "sum",
            "model": "some/model",
            "nested": {"x": [1, None]},
        },
        "items": [{"id": "he/1"}],
        "version": 3,
        "categories": {
            c: {str(layer): [entry(i, layer, e) for e in range(3)] for layer in range(2)} for i, c in enumerate("ba")
        },
    }
    (tmp_path / "x.json").write_text(json.dumps(original))
    imported = import_reference(tmp_path / "x.json")
    assert imported.shape == (2, 2, 3)
    assert imported.wide["hist"].shape == (2, 2, 3, 2)
    imported.save(tmp_path / "stats")
    loaded = ExpertStats.load(tmp_path / "stats")
    assert export_reference(loaded) == original
    assert json.loads(json.dumps(export_reference(loaded))) == original
    assert left_out(loaded) == []
    assert "left_out" not in loaded.metadata


def test_what_has_no_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"id": 0, "wnorm": 1.0, "tc": 2, "note": "text", "flag": True}
    data = {"categories": {"a": {"0": [entry]}}, "metadata": {"bad": float("nan"), "good": 1}, "big": "x" * (2 << 20)}
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert main(["stats", "import", str(tmp_path / "x.json"), "-o", str(tmp_path / "s"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["flag", "metadata.bad", "note", "other.big"]
    (tmp_path / "s").unlink()
    assert main(["stats", "import", str(tmp_path / "x.json"), "-o", str(tmp_path / "s")]) == 0
    assert "left out: flag, metadata.bad, note, other.big" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["small", "gemma4-shape"])
def test_reference_files_survive_import_and_export(shared: Path, shape: str) -> None:
    for name in ("base.json.gz", "targeted.json.gz"):
        path = shared / "reference" / "drop-maps" / shape / name
        original = json.loads(gzip.decompress(path.read_bytes()))
        assert export_reference(import_reference(path)) == original


def entry(**more: object) -> dict[str, object]:
    return {"id": 0, "wnorm": 1.0, "tc": 2, **more}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ([], "TypeError"),
        ({}, "categories"),
        ({"categories": {}}, "IndexError"),
        ({"categories": {"a": {}}}, "'0'"),
        ({"categories": {"a": {"1": [entry()]}}}, "'0'"),
        ({"categories": {"a": {"0": [entry(), entry()]}}}, "does not list experts 0..1 once each"),
        ({"categories": {"a": {"0": [entry(id=1)]}}}, "does not list experts"),
        # True == 1, but not as an index
        ({"categories": {"a": {"0": [entry(), entry(id=True)]}}}, "does not list experts"),
        ({"categories": {"a": {"0": [entry(), entry(id=1.0)]}}}, "does not list experts"),
        ({"categories": {"a": {"0": [{"id": 0}]}}}, "the entries have none of"),
        ({"categories": {"a": {"0": [entry(wnorm="x")]}}}, "wnorm of class a layer 0 expert 0 is 'x'"),
        ({"categories": {"a": {"0": [entry(wnorm=True)]}}}, "not a number"),
        ({"categories": {"a": {"0": [entry()]}, "b": {"0": [entry()], "1": [entry()]}}}, "class b has 2 layers"),
        ({"categories": {"a": {"0": [entry(), {"id": 1, "wnorm": 1.0}]}}}, "tc is a number or list in 1 of 2"),
        ({"categories": {"a": {"0": [entry(x=1), entry(id=1)]}}}, "x is a number or list in 1 of 2"),
        ({"categories": {"a": {"0": [entry(x=1), entry(id=1, x="t")]}}}, "x is a number or list in 1 of 2"),
        ({"categories": {"a": {"0": [entry(x=1), entry(id=1, x=[1])]}}}, "x is a number in some"),
        ({"categories": {"a": {"0": [entry(x=[1]), entry(id=1, x=[1, 2])]}}}, "x of class a layer 0 expert 1"),
        ({"categories": {"a": {"0": [entry(x=[[1]])]}}}, "not a list of as many numbers"),
        ({"categories": {"a": {"0": [entry()]}}, "metadata": {"num_layers": 2}}, "num_layers = 2"),
        ({"categories": {"a": {"0": [entry()]}}, "metadata": []}, "Error"),
        ({"categories": {"a": {"0": "text"}}}, "Error"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, data: object, word: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(StatsError, match="not in the reference layout") as caught:
        import_reference(tmp_path / "x.json")
    assert word in caught.value.actual


def test_a_class_given_twice_is_refused(tmp_path: Path) -> None:
    """JSON itself would keep the last one without a word."""
    body = json.dumps({"0": [entry()]})
    (tmp_path / "x.json").write_text(f'{{"categories": {{"a": {body}, "a": {body}}}}}')
    with pytest.raises(StatsError, match="not in the reference layout") as caught:
        import_reference(tmp_path / "x.json")
    assert "'a' is given twice" in caught.value.actual


def test_null_is_a_value_that_is_not_finite(tmp_path: Path) -> None:
    """NaN is not JSON, and some writers say null: it stays visible as not finite, and is never a number."""
    (tmp_path / "x.json").write_text(json.dumps({"categories": {"a": {"0": [entry(wnorm=None)]}}}))
    assert np.isnan(import_reference(tmp_path / "x.json").fields["wnorm"]).all()
