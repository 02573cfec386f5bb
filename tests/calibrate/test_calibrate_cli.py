"""`trimoe calibrate`: plan, status, result, exit codes."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import signals
from trimoe.calibrate.engine import calibrate, report_path
from trimoe.calibrate.state import read_marks, state_path
from trimoe.cli.main import main
from trimoe.model.checkpoint import open_checkpoint


def command(model: Path, chosen: Path, out: Path, *more: str) -> list[str]:
    return ["calibrate", str(model), "--set", str(chosen), "-o", str(out), *more]


def test_plan_result_and_status(
    random_model: Path, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(random_model, small_set, out, "--status")) == 0
    assert "no calibration has finished a layer" in capsys.readouterr().out
    assert main(command(random_model, small_set, out)) == 0
    text = capsys.readouterr().out
    for part in (
        "26 windows",
        "generic_chat",
        "per expert",
        "predicted: memory",
        "disk",
        "hidden states in memory",
        "layer 1 of 3 took",
        "left",
        "memory at most",
        "(predicted",
        "experts with fewer than",
    ):
        assert part in text, part
    assert main(command(random_model, small_set, out, "--status")) == 0
    assert "finished" in capsys.readouterr().out
    assert main(command(random_model, small_set, out)) == 3
    assert "exists already" in capsys.readouterr().err


def test_a_note_about_the_model_is_in_the_plan_the_statistics_and_the_map(
    random_model: Path,
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    note = "read as a family; model_type tomorrow is unknown"
    noted = replace(open_checkpoint(random_model), notes=(note,))
    monkeypatch.setattr("trimoe.calibrate.engine.open_checkpoint", lambda path: noted)
    out = tmp_path / "out"
    assert main(command(random_model, small_set, out, "--dry-run")) == 0
    assert f"warning: {note}" in capsys.readouterr().out
    assert main(command(random_model, small_set, out)) == 0
    assert f"warning: {note}" in capsys.readouterr().out
    assert main(["map", str(out), "--recipe", "reap", "--keep", "6", "--dry-run"]) == 0
    assert f"warning: {note}" in capsys.readouterr().out


def test_a_model_type_that_transformers_does_not_know_is_refused_by_name(
    random_model: Path, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(random_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "tomorrow"}))
    assert main(command(model, small_set, tmp_path / "out", "--dry-run")) == 3
    assert "transformers cannot build" in capsys.readouterr().err


def test_json_is_one_document(
    random_model: Path, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command(random_model, small_set, out, "--json", "--ram", "900GB")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["shape"] == [2, 3, 8]
    assert data["run"] == json.loads(report_path(out).read_bytes())
    plan, peak = data["run"]["plan"], data["run"]["peak"]
    assert plan["tokens"] == data["tokens"]
    assert plan["tokens_per_expert"]["generic_chat"] == plan["tokens"]["generic_chat"] * 2 / 8
    assert (plan["layers"], plan["prefetch"], plan["peak_device"], peak["device"]) == (3, True, 0, 0)
    assert peak["ram"] > 1 << 28
    assert len(data["run"]["seconds_per_layer"]) == 3
    row = data["run"]["coverage"]["targeted_text"]
    assert row["experts"] == 24
    assert 0 < row["thin"] <= 24
    manifest = json.loads((tmp_path / "out.manifest.json").read_bytes())
    assert manifest["kind"] == "statistics"
    assert manifest["inputs"]["model"] == data["model"]
    assert main(command(random_model, small_set, out, "--status", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"


def test_a_dry_run_writes_nothing(
    random_model: Path, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(command(random_model, small_set, tmp_path / "out", "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["disk"] > 0
    assert main(command(random_model, small_set, tmp_path / "out", "--dry-run")) == 0
    assert "predicted: memory" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_shards_and_extras_reach_the_file(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    from trimoe.calibrate.stats.expert_stats import ExpertStats

    out = tmp_path / "out"
    assert main(command(random_model, small_set, out, "--shards", "2", "--coactivation", "--neurons")) == 0
    stats = ExpertStats.load(out)
    assert stats.metadata["shards"] == 2
    assert "shard01/tc" in stats.fields
    assert "shard02/tc" not in stats.fields
    assert stats.wide["coactivation"].shape == (2, 3, 8, 8)
    assert stats.wide["neuron_act"].shape == (2, 3, 8, 16)


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        (["--ram", "8"], 4, "memory budget is too small"),
        (["--ram", "8XB"], 2, "is not a size"),
        (["--ram", "200MB"], 4, "--ram of at least"),
        (["--device", "cuda:9"], 2, "device cuda:9 cannot be used"),
        (["--device", "abacus"], 2, "device abacus cannot be used"),
        (["--from", "2"], 2, "cannot resume at layer 2"),
        (["--shards", "0"], 2, "0 is not in the range"),
        (["--batch-tokens", "0"], 2, "0 is not in the range"),
        (["--dtype", "int8"], 2, "is not one of"),
    ],
)
def test_options_that_cannot_be_met(
    random_model: Path,
    small_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    word: str,
) -> None:
    assert main(command(random_model, small_set, tmp_path / "out", *more)) == code
    assert word in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_a_full_disk_is_refused_before_the_first_layer(
    random_model: Path,
    small_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(command(random_model, small_set, tmp_path / "out")) == 4
    assert "not enough disk space" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.slow
def test_interrupting_the_command_keeps_finished_layers(
    make_model: Callable[..., Path], long_set: Path, tmp_path: Path
) -> None:
    """A process gets SIGINT after its third layer: exit code 6, a message that says how to resume, same bytes."""
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    model = make_model(num_hidden_layers=6, layer_types=kinds, hidden_size=128)
    out, whole = tmp_path / "out", tmp_path / "whole"
    child = subprocess.run(
        signals.command(signal.SIGINT, 3, "trimoe.calibrate.state:RunState.commit", command(model, long_set, out)),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    stderr = child.stderr
    assert child.returncode == 6, stderr
    assert "3 of 6 layers are finished and kept" in stderr
    assert "run the same command again to resume" in stderr
    assert len(read_marks(state_path(out))) == 3
    calibrate(model, long_set, out)
    calibrate(model, long_set, whole)
    assert out.read_bytes() == whole.read_bytes()
