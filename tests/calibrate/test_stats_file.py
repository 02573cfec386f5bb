"""The statistics file: round trips, damage, and `trimoe stats show`."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.reference import import_reference
from trimoe.cli.main import main
from trimoe.errors import BadInput, StatsError


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
    stats.fields["cc"][1, 0, 0], stats.fields["wnorm"][1, 0, 0] = 3, 2.5e6  # a sum over three windows: no accident
    stats.fields["tc"][1, 2, 3] = 0
    stats.save(tmp_path / "stats")
    assert main(["stats", "show", str(tmp_path / "stats"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fields"]["wnorm"] == {"nonfinite": 1, "all_zero": False, "extreme": 1}
    assert data["fields"]["rnorm"]["all_zero"]
    assert data["classes"]["class1"]["never_used"] == 1
    assert main(["stats", "show", str(tmp_path / "stats")]) == 0
    text = capsys.readouterr().out
    assert "wnorm: 1 not finite, 1 above 1e6 per window" in text
    assert "rnorm: zero everywhere" in text
