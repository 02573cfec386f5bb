"""Sharded checkpoints: each tensor comes from the file that the index names, and every disagreement has its remedy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.hand_made import gemma_arrays, gemma_config, write_checkpoint, write_file
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import read_bytes
from trimoe.model.shards import INDEX, read_index


def test_sharded_index(tmp_path: Path) -> None:
    arrays = gemma_arrays()
    shards = [i % 3 for i in range(len(arrays))]
    folder = write_checkpoint(tmp_path / "m", arrays, gemma_config(), shards)
    index = read_index(folder)
    assert index.keys() == arrays.keys()
    assert all(read_bytes(index[name]) == arrays[name].tobytes() for name in arrays)

    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        read_index(folder)
    shard.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=r"tensor model\.\S+ .*truncated"):
        read_index(folder)


def test_index_that_contradicts_the_shards(tmp_path: Path) -> None:
    arrays = gemma_arrays()
    folder = write_checkpoint(tmp_path / "m", arrays, gemma_config(), [i % 2 for i in range(len(arrays))])
    file = folder / "model.safetensors.index.json"
    good = json.loads(file.read_text())
    first = next(iter(arrays))

    def refused(change: object, message: str) -> None:
        file.write_text(json.dumps(change))
        with pytest.raises(CheckpointError, match=message):
            read_index(folder)

    other = {"model-00001-of-00002.safetensors": "model-00002-of-00002.safetensors"}
    moved = {**good["weight_map"], first: other[good["weight_map"][first]]}
    refused({"weight_map": moved}, f"tensor {first} is not in shard")
    refused(
        {"weight_map": {**good["weight_map"], "ghost": good["weight_map"][first]}}, "ghost is in none of the shards"
    )
    refused({"weight_map": {**good["weight_map"], first: "../evil.safetensors"}}, "outside its directory")
    refused({"weight_map": {**good["weight_map"], first: 7}}, "names no file for")
    refused({"weight_map": {}}, "no weight_map")
    refused([], "no weight_map")


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint in two shards, and its tensors."""
    arrays = gemma_arrays()
    return write_checkpoint(tmp_path / "m", arrays, gemma_config(), [i % 2 for i in range(len(arrays))]), arrays


def add(folder: Path, arrays: dict[str, np.ndarray], number: int, more: dict[str, np.ndarray]) -> None:
    """Add tensors to shard 1 or 2 and not to the index."""
    file = folder / f"model-0000{number}-of-00002.safetensors"
    owners = json.loads((folder / INDEX).read_text())["weight_map"]
    write_file(file, {n: arrays[n] for n, shard in owners.items() if shard == file.name} | more)


def test_a_stale_copy_is_not_the_tensor(halves: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    folder, arrays = halves
    owners = json.loads((folder / INDEX).read_text())["weight_map"]
    first = min(arrays)
    other = 2 if owners[first].startswith("model-00001") else 1
    add(folder, arrays, other, {first: np.zeros_like(arrays[first])})
    notes: list[str] = []
    index = read_index(folder, notes)
    assert index.keys() == arrays.keys()
    assert index[first].file.name == owners[first]
    assert read_bytes(index[first]) == arrays[first].tobytes()
    assert len(notes) == 1
    assert "1 tensor (" in notes[0]
    assert first in notes[0]
    assert "ignored" in notes[0]


def test_an_unlisted_tensor_is_read(halves: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, arrays = halves
    add(folder, arrays, 1, {"mtp.fc.weight": np.ones((2, 2), np.uint16)})
    notes: list[str] = []
    assert read_index(folder, notes).keys() == arrays.keys() | {"mtp.fc.weight"}
    assert "mtp.fc.weight" in notes[0]
    assert "not listed" in notes[0]


def test_an_unlisted_tensor_in_two_shards_has_no_owner(halves: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, arrays = halves
    for number in (1, 2):
        add(folder, arrays, number, {"mtp.fc.weight": np.ones((2, number), np.uint16)})
    with pytest.raises(CheckpointError, match="the index does not say which counts") as caught:
        read_index(folder)
    assert "weight_map" in caught.value.remedy


def test_the_remedy_names_where_a_tensor_is(halves: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, arrays = halves
    content = json.loads((folder / INDEX).read_text())
    first = min(arrays)
    was = content["weight_map"][first]
    content["weight_map"][first] = next(v for v in content["weight_map"].values() if v != was)
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        read_index(folder)
    assert was in caught.value.actual
    assert "correct the entry" in caught.value.remedy


def test_a_single_file_beside_an_index_is_a_second_model(halves: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, arrays = halves
    write_file(folder / "model.safetensors", arrays)
    with pytest.raises(CheckpointError, match="holds two models"):
        read_index(folder)


def test_a_key_twice_in_the_index_is_refused(halves: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, arrays = halves
    first, text = min(arrays), (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"{first}": "old.safetensors",'))
    with pytest.raises(CheckpointError, match="not readable JSON") as caught:
        read_index(folder)
    assert "twice" in caught.value.actual


def test_a_prune_of_disagreeing_shards_is_exact_and_named(
    halves: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Stale copies do not reach the output; the report and the certificate name them."""
    folder, arrays = halves
    clean = Path(shutil.copytree(folder, tmp_path / "clean"))
    owners = json.loads((folder / INDEX).read_text())["weight_map"]
    name = next(n for n in owners if "experts" in n)
    number = 2 if owners[name].startswith("model-00001") else 1
    add(folder, arrays, number, {name: np.zeros_like(arrays[name])})
    model = open_checkpoint(folder)
    drop = DropMap(dict.fromkeys(model.moe_layers, (0,)), model.num_experts)
    report = prune(folder, drop, tmp_path / "out")
    assert any(name in warning for warning in report.warnings)
    prune(clean, drop, tmp_path / "expected")
    assert {n: read_bytes(i) for n, i in read_index(tmp_path / "out").items()} == {
        n: read_bytes(i) for n, i in read_index(tmp_path / "expected").items()
    }
    made = certify(folder, tmp_path / "out", logits=False)
    assert made.status == "incomplete"
    assert f"{name} in model-0000{number}" in made.check("files").detail


def test_a_pruned_model_with_stale_copies_is_refuted(
    halves: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """A loader that reads whole shards would take other bytes than those that were compared."""
    folder, arrays = halves
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    owners = json.loads((folder / INDEX).read_text())["weight_map"]
    name = min(owners)
    add(copy, arrays, 2 if owners[name].startswith("model-00001") else 1, {name: np.zeros_like(arrays[name])})
    made = certify(folder, copy, logits=False)
    assert made.status == "refuted"
    assert name in made.check("readable").findings[0].subject
