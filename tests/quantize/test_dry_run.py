"""A dry run of `quantize` predicts what the run makes, refuses what the run refuses, and writes nothing."""

import json
from pathlib import Path

import pytest

import trimoe
from trimoe.cli.main import main
from trimoe.errors import BadInput, MissingPrerequisite, UsageError
from trimoe.model import tiny
from trimoe.quantize import dry_run


def test_an_nvfp4_checkpoint_has_the_predicted_size(tmp_path: Path) -> None:
    planned = trimoe.quantize(tiny.path(), tiers="NVFP4A16", out=tmp_path / "out", dry_run=True).planned
    assert planned is not None
    assert planned.missing is None
    assert not (tmp_path / "out").exists()
    trimoe.quantize(tiny.path(), tiers="NVFP4A16", out=tmp_path / "out", replies=False)
    weights = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert [one.bytes for one in planned.outputs] == [weights]
    again = trimoe.quantize(tiny.path(), tiers="NVFP4A16", out=tmp_path / "out", dry_run=True).planned
    assert again is not None
    assert again.outputs[0].exists


def test_tiers_without_llamacpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(directory: Path | None) -> None:
        raise MissingPrerequisite(
            "llama.cpp is not installed", expected="its programs", remedy="trimoe llamacpp install"
        )

    monkeypatch.setattr(dry_run, "locate", none)
    command = ["quantize", str(tiny.path()), "--tiers", "Q8_0,Q4_K_M", "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "trimoe llamacpp install" in data["missing"]
    assert [Path(one["path"]).name for one in data["outputs"]] == ["checkpoint-Q8_0.gguf", "checkpoint-Q4_K_M.gguf"]
    assert main(["plan", str(tiny.path()), "--tier", "Q8_0", "--json"]) == 0
    assert data["outputs"][0]["bytes"] == json.loads(capsys.readouterr().out)["file_bytes"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("dry run: nothing is written")
    assert "missing: llama.cpp is not installed" in text
    assert not (tmp_path / "out").exists()


def test_what_the_run_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs a ranking of layers"):
        trimoe.quantize(tiny.path(), tiers="CD-Q4_K_M", out=tmp_path / "out", dry_run=True)
    with pytest.raises(UsageError, match="cannot foresee a mix"):
        trimoe.quantize(tiny.path(), mix="auto", target_size="1GB", out=tmp_path / "out", dry_run=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is not a directory"):
        trimoe.quantize(tiny.path(), tiers="Q8_0", out=tmp_path / "file", dry_run=True)
