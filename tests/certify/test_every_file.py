"""Every file of the original is carried, edited, or named as left out; the proof counts what the original has."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint

FEW = np.zeros(4, np.float32)


@pytest.fixture
def base(gemma: Path, tmp_path: Path) -> Path:
    """A model with what exporters leave beside the weights that the index names."""
    folder = Path(shutil.copytree(gemma, tmp_path / "base"))
    save_file({"mtp.fc.weight": FEW}, folder / "mtp.safetensors")
    save_file({"layers.0.experts.0.w1.weight": FEW}, folder / "consolidated.safetensors")
    (folder / "params.json").write_text('{"dim": 8, "moe": {"num_experts": 8, "num_experts_per_tok": 2}}')
    (folder / "encoding" / "deep").mkdir(parents=True)
    (folder / "encoding" / "deep" / "encode.py").write_text("pass\n")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"weights")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    return folder


def verdict(base: Path, out: Path) -> tuple[bool, str, list[str]]:
    """Whether the check of files passed, its detail, and the subjects of its findings."""
    found = next(c for c in certify(base, out, logits=False).checks if c.name == "files")
    return found.status == "passed", found.detail, [finding.subject for finding in found.findings]


def test_everything_is_carried_edited_or_named(base: Path, drop_map: DropMap, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prune(base, drop_map, out)
    assert (out / "mtp.safetensors").read_bytes() == (base / "mtp.safetensors").read_bytes()
    assert (out / "encoding" / "deep" / "encode.py").is_file()
    assert json.loads((out / "params.json").read_text()) == {
        "dim": 8,
        "moe": {"num_experts": 6, "num_experts_per_tok": 2},
    }
    assert report.files_left_out == {
        ".git/": "a hidden folder",
        "consolidated.safetensors": "weights that are not in the index",
        "original/consolidated.00.pth": "weights in another format, or an index of such weights",
    }
    passed, detail, findings = verdict(base, out)
    assert passed, findings
    assert "mtp.safetensors" in detail
    assert "left out: consolidated.safetensors (weights that are not in the index)" in detail
    assert "original/consolidated.00.pth" in detail


@pytest.mark.parametrize("name", ["mtp.safetensors", "encoding/deep/encode.py", "params.json", "tokenizer.json"])
def test_a_file_that_is_not_carried_is_named(name: str, base: Path, drop_map: DropMap, tmp_path: Path) -> None:
    prune(base, drop_map, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    passed, _, findings = verdict(base, tmp_path / "out")
    assert not passed
    assert findings == [f"file {name} is missing"]


def test_params_that_count_the_originals_experts_are_named(base: Path, drop_map: DropMap, tmp_path: Path) -> None:
    prune(base, drop_map, tmp_path / "out")
    shutil.copyfile(base / "params.json", tmp_path / "out" / "params.json")
    _, _, findings = verdict(base, tmp_path / "out")
    assert findings == ["params.json: moe.num_experts is not what it should be"]


def test_unnamed_weights_that_changed_or_hold_experts_are_not_part_of_the_model(
    base: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prune(base, drop_map, out)
    save_file({"mtp.fc.weight": FEW + 1}, out / "mtp.safetensors")
    shutil.copyfile(base / "consolidated.safetensors", out / "consolidated.safetensors")
    _, _, findings = verdict(base, out)
    assert findings == [
        "file consolidated.safetensors holds weights that are not part of the model",
        "file mtp.safetensors holds weights that are not part of the model",
    ]


def test_params_of_another_model_are_refused(base: Path, drop_map: DropMap, tmp_path: Path) -> None:
    (base / "params.json").write_text('{"moe": {"num_experts": 16}}')
    with pytest.raises(CheckpointError, match=r"params\.json and config\.json disagree"):
        prune(base, drop_map, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("count", "expected"), [(8, 6), (64, 64)])
def test_a_second_count_in_config_json_follows_if_it_is_the_same(
    count: int, expected: int, base: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    config = json.loads((base / "config.json").read_text())
    nested = {"model_type": "gemma4", "num_experts": count, "text_config": config}
    (base / "config.json").write_text(json.dumps(nested, indent=2))
    assert open_checkpoint(base).num_experts == 8
    prune(base, drop_map, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_experts"], config["text_config"]["num_experts"]) == (expected, 6)
    checks = {c.name: c.status for c in certify(base, tmp_path / "out", logits=False).checks}
    assert checks["config"] == "passed"


@pytest.mark.parametrize("value", [3, [], "x", None])
def test_a_text_config_that_is_no_object_is_left_alone(
    value: object, base: Path, drop_map: DropMap, tmp_path: Path
) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"text_config": value}, indent=2))
    prune(base, drop_map, tmp_path / "out")
    edited = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (edited["num_experts"], edited["text_config"]) == (6, value)


@pytest.mark.parametrize("content", [b'{"moe": {"num_experts": 8}}'.decode().encode("utf-16"), b'{"moe": 8}', b"[8]"])
def test_params_in_another_form(content: bytes, base: Path, drop_map: DropMap, tmp_path: Path) -> None:
    """Another encoding is refused, and a file without a count is copied."""
    (base / "params.json").write_bytes(content)
    if b"\0" in content:
        with pytest.raises(CheckpointError, match=r"params\.json cannot be edited"):
            prune(base, drop_map, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        prune(base, drop_map, tmp_path / "out")
        assert (tmp_path / "out" / "params.json").read_bytes() == content
