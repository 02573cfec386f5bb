"""A directory without a usable tokenizer is named as such, by everything that needs one."""

import shutil
from pathlib import Path

import pytest

from trimoe.calibrate.engine import calibrate
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.generate import Generator
from trimoe.model.tiny import path as bundled
from trimoe.model.tokenizer import load_tokenizer


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The bundled model without its vocabulary; tokenizer_config.json is there."""
    folder = Path(shutil.copytree(bundled(), tmp_path / "bare"))
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").is_file()
    return folder


def test_a_missing_vocabulary_is_named(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bare has no tokenizer") as caught:
        load_tokenizer(bare)
    assert "tokenizer.json" in caught.value.expected
    assert "copy the tokenizer files" in caught.value.remedy
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(tmp_path / "no-such-directory")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "\0"])
def test_a_vocabulary_that_is_none_is_named(bare: Path, content: str) -> None:
    (bare / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        load_tokenizer(bare)
    assert "download the tokenizer files again" in caught.value.remedy


def test_calibrate_and_generation_say_so(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "some words"}\n' * 4)
    (tmp_path / "set.yaml").write_text("name: t\nclasses:\n  t: [{kind: jsonl, path: t.jsonl}]\n")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        calibrate(bare, tmp_path / "set.yaml", tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        Generator(bare)


def test_certify_does_not_run_the_logits_and_says_why(bare: Path, tmp_path: Path) -> None:
    model = open_checkpoint(bare)
    prune(bare, DropMap(dict.fromkeys(model.moe_layers, (0,)), model.num_experts), tmp_path / "out")
    made = certify(bare, tmp_path / "out")
    assert made.status == "incomplete"
    assert "has no tokenizer" in made.check("logits").detail
