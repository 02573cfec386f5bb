"""The statistics file: round trips, damage, and `trimoe stats show`."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

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


def test_tables_and_a_short_repr(tmp_path: Path) -> None:
    stats = stats_of(1, (2, 3, 4), model="m" * 64, moe_layers=[1, 2])
    stats.fields["shard00/tc"] = stats.fields["tc"]
    assert repr(stats) == f"ExpertStats(2 classes, 3 layers, 4 experts; model {'m' * 16})"
    plain = stats.as_dict()
    assert ExpertStats(tuple(plain["classes"]), {n: np.array(v) for n, v in plain["fields"].items()}).shape == (2, 3, 4)
    frame = stats.to_pandas()
    assert len(frame) == 2 * 2 * 4
    assert "shard00/tc" not in frame
    row = frame[(frame["class"] == "class1") & (frame.layer == 2) & (frame.expert == 3)].iloc[0]
    assert row.wnorm == stats.fields["wnorm"][1, 2, 3]
    stats.save(str(tmp_path / "a"))
    assert ExpertStats.load(str(tmp_path / "a")).path == tmp_path / "a"


@pytest.mark.parametrize("data", [b"", b"{", b"\x1f\x8b", b"\x1f\x8b\x08\x00" + b"\0" * 20, b"\xff" * 40])
def test_damaged_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(StatsError):
        import_reference(tmp_path / "x.json")
    with pytest.raises(StatsError):
        ExpertStats.load(tmp_path / "x.json")


def test_a_changed_byte_is_refused_or_changes_what_is_read(tmp_path: Path) -> None:
    """Every byte of a small file, in three ways: refused, or read as statistics that say something else."""
    path = tmp_path / "stats"
    whole = stats_of(1, (1, 1, 2), tokens={"class0": 3})
    whole.save(path)
    data, outcomes = path.read_bytes(), Counter[str]()
    for at in range(len(data)):
        for value in {0, data[at] ^ 1, 0xFF} - {data[at]}:
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                found = ExpertStats.load(path)
            except StatsError:
                outcomes["refused"] += 1
                continue
            same = found.content_hash == whole.content_hash and found.metadata == whole.metadata
            outcomes["the same" if same else "other"] += 1
    # A changed space after the header or a changed format name says nothing else; a changed value must show.
    assert outcomes["other"] > outcomes["the same"], outcomes
    assert outcomes["refused"] > len(data), outcomes


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
