"""The statistics file: round trips, merging, the reference layout, `trimoe stats`."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.cli.main import main
from trimoe.errors import BadInput, StatsError
from trimoe.measure.stats import ExpertStats, export_reference, import_reference, merge


def stats_of(seed: int, shape: tuple[int, int, int] = (2, 3, 4), **metadata: object) -> ExpertStats:
    rng = np.random.default_rng(seed)
    fields = {n: rng.random(shape) * 9 for n in ("wnorm", "rnorm", "wsum", "reap_sum")}
    fields |= {n: rng.integers(1, 99, shape).astype(float) for n in ("tc", "cc")}
    return ExpertStats(tuple(f"class{i}" for i in range(shape[0])), fields, dict(metadata))


def equal(one: ExpertStats, other: ExpertStats, names: set[str] | None = None) -> bool:
    return one.classes == other.classes and all(
        np.array_equal(one.fields[n], other.fields[n], equal_nan=True) for n in names or one.fields.keys()
    )


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    stats = stats_of(1, model="m", tokens={"class0": 3})
    stats.fields["wnorm"][0, 0, 0] = np.nan
    stats.save(tmp_path / "a")
    stats.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = ExpertStats.load(tmp_path / "a")
    assert equal(loaded, stats)
    assert (loaded.metadata, loaded.content_hash) == (stats.metadata, stats.content_hash)
    with pytest.raises(BadInput, match="exists"):
        stats.save(tmp_path / "a")


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_reference_round_trip(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    stats = stats_of(2)
    stats.save(tmp_path / "stats")
    out = tmp_path / f"out{suffix}"
    assert main(["stats", "export", str(tmp_path / "stats"), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["reap_sum"]
    assert main(["stats", "import", str(out), "-o", str(tmp_path / "back")]) == 0
    back = ExpertStats.load(tmp_path / "back")
    assert set(back.fields) == set(stats.fields) - {"reap_sum"}
    assert equal(stats, back, set(back.fields))


def test_reference_files_survive_import_and_export(shared: Path) -> None:
    for path in sorted((shared / "reference" / "drop-maps" / "small").glob("*.json.gz")):
        if path.name in ("base.json.gz", "targeted.json.gz"):
            original = json.loads(gzip.decompress(path.read_bytes()))
            assert export_reference(import_reference(path))["categories"] == original["categories"]


@given(st.integers(0, 1000), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_merging_adds(seed: int, count: int) -> None:
    parts = [stats_of(seed + i) for i in range(count)]
    for part in parts:
        part.fields["contrib_max"] = part.fields["wnorm"].copy()
    merged = merge(parts)
    for name in parts[0].fields:
        whole = np.stack([p.fields[name] for p in parts])
        expected = whole.max(0) if name == "contrib_max" else whole.sum(0)
        assert np.allclose(merged.fields[name], expected, rtol=1e-15)


def test_merged_metadata_keeps_the_counts() -> None:
    one = stats_of(1, model="m", set="a", tokens={"class0": 3, "class1": 4}, windows=2)
    two = stats_of(2, model="m", set="b", tokens={"class0": 5, "class1": 6}, windows=3)
    metadata = merge([one, two]).metadata
    assert metadata["tokens"] == {"class0": 8, "class1": 10}
    assert (metadata["model"], metadata["set"], metadata["windows"]) == ("m", ["a", "b"], 5)
    assert metadata["merged"] == [one.content_hash, two.content_hash]
    assert equal(merge([one]), one)


def wide_stats(seed: int) -> ExpertStats:
    stats = stats_of(
        seed, model="m", tokens={"class0": 3, "class1": 4}, masked_tokens={"class0": [1, 0, 2]}, moe_layers=[0, 1, 2],
        merge={"contrib_max": "max", "peak": "max", "out_mean_norm": "none"},
    )  # fmt: skip
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
        "neuron_act": (2, 3, 4, 5), "coactivation": (2, 3, 4, 4),
    }  # fmt: skip
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
    with pytest.raises(StatsError, match="neuron_act is not a list of 5 numbers"):
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


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    one = stats_of(1, model="m")
    fewer = stats_of(2, model="m")
    del fewer.fields["reap_sum"]
    wider = stats_of(2, model="m")
    wider.wide["neuron_act"] = np.ones((2, 3, 4, 5))
    for other, word in (
        (stats_of(2, model="other"), "model"),
        (stats_of(2, (1, 3, 4), model="m"), "classes"),
        (stats_of(2, (2, 3, 5), model="m"), "shape"),
        (fewer, "fields"),
        (wider, "wide fields"),
        (one, "twice"),
    ):
        with pytest.raises(StatsError, match=word):
            merge([one, other])
    one.save(tmp_path / "one")
    assert main(["stats", "merge", str(tmp_path / "one"), str(tmp_path / "one"), "-o", str(tmp_path / "m")]) == 3
    assert not (tmp_path / "m").exists()


def entry(**more: object) -> dict[str, object]:
    return {"id": 0, "wnorm": 1.0, "tc": 2, **more}


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"categories": {}},
        {"categories": {"a": {}}},
        {"categories": {"a": {"1": [entry()]}}},
        {"categories": {"a": {"0": [entry(), entry()]}}},
        {"categories": {"a": {"0": [entry(id=1)]}}},
        {"categories": {"a": {"0": [{"id": 0}]}}},
        {"categories": {"a": {"0": [entry(wnorm="x")]}}},
        {"categories": {"a": {"0": [entry()]}, "b": {"0": [entry()], "1": [entry()]}}},
        {"categories": {"a": {"0": [entry()]}}, "metadata": {"num_layers": 2}},
        {"categories": {"a": {"0": [entry()]}}, "metadata": []},
        {"categories": {"a": {"0": "text"}}},
    ],
)
def test_other_json_is_refused(tmp_path: Path, data: object) -> None:
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(StatsError, match="not in the reference layout"):
        import_reference(tmp_path / "x.json")


def test_null_is_a_value_that_is_not_finite(tmp_path: Path) -> None:
    """NaN is not JSON, and some writers say null: it stays visible as not finite, and is never a number."""
    (tmp_path / "x.json").write_text(json.dumps({"categories": {"a": {"0": [entry(wnorm=None)]}}}))
    assert np.isnan(import_reference(tmp_path / "x.json").fields["wnorm"]).all()


@pytest.mark.parametrize("data", [b"", b"{", b"\x1f\x8b", b"\x1f\x8b\x08\x00" + b"\0" * 20, b"\xff" * 40])
def test_damaged_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(StatsError):
        import_reference(tmp_path / "x.json")
    with pytest.raises(StatsError):
        ExpertStats.load(tmp_path / "x.json")


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_never_crashes(tmp_path_factory: pytest.TempPathFactory, at: int, value: int) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "stats"
    stats_of(1, (1, 1, 2)).save(path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    try:
        ExpertStats.load(path)
    except StatsError:
        return


def test_missing_files_are_refused_by_exit_code(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert main(["stats", "show", gone]) == 3
    assert main(["stats", "show", gone + ".json"]) == 3
    assert main(["stats", "import", gone, "-o", str(tmp_path / "out")]) == 3
    assert main(["stats", "export", gone, "-o", str(tmp_path / "out")]) == 3
    assert main(["stats", "merge", "-o", str(tmp_path / "out")]) == 2


def test_show_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = stats_of(3, model="m")
    stats.fields["wnorm"][0, 0, :2] = np.nan, 1e9
    stats.fields["rnorm"][:] = 0
    stats.fields["tc"][1, 2, 3] = 0
    stats.save(tmp_path / "stats")
    assert main(["stats", "show", str(tmp_path / "stats"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fields"]["wnorm"] == {"nonfinite": 1, "all_zero": False, "extreme": 1}
    assert data["fields"]["rnorm"]["all_zero"]
    assert data["classes"]["class1"]["never_used"] == 1
    assert main(["stats", "show", str(tmp_path / "stats")]) == 0
    text = capsys.readouterr().out
    assert "wnorm: 1 not finite, 1 above 1e6" in text
    assert "rnorm: zero everywhere" in text
