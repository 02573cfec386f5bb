"""Pipes, devices and absurd numbers in a model's files are refused at once, with the limit in the message."""

import json
import os
import shutil
from pathlib import Path

import pytest

from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, CalibrationError, CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.model.open import open_model
from trimoe.model.safetensors import MORE_TENSORS, read_header
from trimoe.model.shards import read_index
from trimoe.model.tiny import path as bundled


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled(), tmp_path / "model"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_what_is_no_file_is_not_opened(model: Path, name: str, kind: str) -> None:
    """Opening a pipe without a writer would wait forever."""
    (model / name).unlink()
    if kind == "pipe":
        os.mkfifo(model / name)
    else:
        (model / name).symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match="regular file") as caught:
        open_checkpoint(model)
    assert name in str(caught.value)


@pytest.mark.timeout(20)
def test_gguf_and_imatrix_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="regular file"):
        open_model(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_imatrix(tmp_path / "x.gguf")


@pytest.mark.timeout(20)
def test_a_pipe_beside_the_weights_is_named_as_left_out(model: Path, tmp_path: Path) -> None:
    os.mkfifo(model / "mtp.safetensors")
    opened = open_checkpoint(model)
    drop = DropMap(dict.fromkeys(opened.moe_layers, (0,)), opened.num_experts)
    report = prune(model, drop, tmp_path / "out")
    assert report.files_left_out["mtp.safetensors"] == "a pipe or a device, not a file"


def empties(path: Path, count: int) -> Path:
    header = json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


@pytest.mark.timeout(60)
def test_the_number_of_tensors_is_limited_and_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = empties(tmp_path / "model.safetensors", 600_000)
    with pytest.raises(CheckpointError, match="600,000 tensors") as caught:
        read_header(file)
    assert "500,000" in caught.value.expected
    assert MORE_TENSORS in caught.value.remedy
    small = empties(tmp_path / "small.safetensors", 40)
    assert len(read_header(small)[0]) == 40
    monkeypatch.setenv(MORE_TENSORS, "39")
    with pytest.raises(CheckpointError, match="40 tensors"):
        read_header(small)
    monkeypatch.setenv(MORE_TENSORS, "no number")  # as if it were not set
    assert len(read_header(small)[0]) == 40


def test_the_limit_holds_over_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        header = json.dumps(
            {f"t{number}.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(30)}
        ).encode()
        (tmp_path / f"{number}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    names = {f"t{n}.{i}": f"{n}.safetensors" for n in (1, 2) for i in range(30)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert len(read_index(tmp_path)) == 60
    monkeypatch.setenv(MORE_TENSORS, "50")
    with pytest.raises(CheckpointError, match="60 tensors"):
        read_index(tmp_path)


@pytest.mark.parametrize("count", [100_000_000, 100_001, 0])
def test_the_number_of_drawn_items_is_limited(count: int, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"name: s\nclasses:\n  t: [{{kind: tiny, domain: math, count: {count}}}]\n")
    with pytest.raises(CalibrationError, match="count"):
        CalibrationSet.load(tmp_path / "s.yaml")


@pytest.mark.timeout(20)
def test_a_text_that_is_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.txt")
    (tmp_path / "s.yaml").write_text("name: s\nclasses:\n  t: [{kind: text, path: t.txt}]\n")
    with pytest.raises(BadInput, match=r"t\.txt") as caught:
        CalibrationSet.load(tmp_path / "s.yaml").texts()
    assert "regular file" in str(caught.value)
