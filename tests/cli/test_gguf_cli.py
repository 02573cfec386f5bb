"""prune, inspect, certify and infer-map on GGUF files, as a user calls them."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.gguf_models import write_imatrix, write_model
from trimoe.cli.main import main

DROP = {"drop": {"0": [1, 4], "1": [0, 7], "2": [2, 3]}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with base.gguf, i.gguf and map.json, and no llama.cpp anywhere."""
    write_imatrix(tmp_path / "i.gguf", write_model(tmp_path / "base.gguf", "gemma4", fused=True))
    (tmp_path / "map.json").write_text(json.dumps(DROP))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("TRIMOE_LLAMACPP", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit code and the one JSON document on standard output."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_way_of_a_gguf_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts = run(capsys, "inspect", "base.gguf")
    assert (code, facts["family"], facts["experts"], facts["layout"]) == (0, "gemma4", 8, "GGUF")
    assert facts["file_bytes"] == (here / "base.gguf").stat().st_size
    code, report = run(
        capsys, "prune", "base.gguf", "map.json", "-o", "cut.gguf", "--imatrix", "i.gguf", "--imatrix-out", "o.gguf"
    )
    assert (code, report["experts_after"], report["shards"]) == (0, 6, 1)
    assert (here / "o.gguf").stat().st_size < (here / "i.gguf").stat().st_size
    code, found = run(capsys, "infer-map", "base.gguf", "cut.gguf", "-o", "found.json")
    assert (code, found["exact"]) == (0, True)
    assert json.loads((here / "found.json").read_text())["drop"] == DROP["drop"]
    code, certificate = run(capsys, "certify", "base.gguf", "cut.gguf", "--map", "map.json")
    assert (code, certificate["status"]) == (1, "incomplete")
    assert "trimoe llamacpp install" in certificate["checks"][-1]["detail"]
    assert (here / "cut.gguf.certificate.json").exists()


def test_text_for_people(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "base.gguf"]) == 0
    out = capsys.readouterr().out
    assert "8 per layer, 2 active per token, in Q4_K" in out
    assert main(["prune", "base.gguf", "map.json", "-o", "parts", "--max-shard", "300kB"]) == 0
    assert "kept 6 of 8 experts in 3 layers" in capsys.readouterr().out
    assert main(["certify", "base.gguf", "parts", "--no-logits"]) == 1
    assert "NOT CERTIFIED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("prune", "base.gguf", "map.json", "-o", "cut.gguf", "--max-shard", "1MB"), 2, "UsageError"),
        (("prune", "base.gguf", "map.json", "-o", "cut.gguf", "--imatrix", "i.gguf"), 2, "UsageError"),
        (("prune", "absent.gguf", "map.json", "-o", "cut.gguf"), 3, "CheckpointError"),
        (("prune", "i.gguf", "map.json", "-o", "cut.gguf"), 3, "CheckpointError"),
        (("prune", "base.gguf", "map.json", "-o", "base.gguf"), 3, "BadInput"),
        (("inspect", "base.gguf", "--finite"), 2, "UsageError"),
        (("inspect", "i.gguf"), 3, "CheckpointError"),
        (("certify", "base.gguf", "absent"), 3, "CheckpointError"),
        (("infer-map", "base.gguf", "map.json", "-o", "x.json"), 3, "CheckpointError"),
        (("llamacpp", "where"), 4, "MissingPrerequisite"),
        (("llamacpp", "install", "--cuda", "--vulkan"), 2, "UsageError"),
    ],
)
def test_errors_have_their_exit_codes(
    arguments: tuple[str, ...], code: int, error: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"] == error


def test_options_of_the_other_format_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "checkpoint").mkdir()
    for arguments in (
        ("prune", "checkpoint", "map.json", "-o", "x", "--imatrix", "i.gguf"),
        ("certify", "checkpoint", "base.gguf", "--reference", "base.gguf"),
    ):
        assert main([*arguments, "--json"]) == 2
        assert "GGUF models" in json.loads(capsys.readouterr().out)["subject"]
