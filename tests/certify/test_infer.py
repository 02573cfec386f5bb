"""infer-map: the exact map from the experts' bytes, and what else somebody changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.certify_models import Tensors, edit_json, edit_tensors, write_gemma4
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError

GATE_UP = "model.layers.1.experts.gate_up_proj"
ROUTER = "model.layers.0.router.proj.weight"
DENSE = "model.layers.0.mlp.down_proj.weight"


def _edit(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    def edit(tensors: Tensors) -> None:
        dtype, shape, data = tensors[name]
        array = change(np.frombuffer(data, "<f4").reshape(shape).copy())
        tensors[name] = (dtype, array.shape, array.astype("<f4").tobytes())

    edit_tensors(folder, edit)


def test_the_exact_map_is_recovered(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    result = infer_map(gemma, pruned)
    assert result.exact
    assert result.map is not None
    assert (result.map.drop, result.map.num_experts) == (drop_map.drop, 8)
    assert certify(gemma, pruned, map=result.map).proven


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_map_is_recovered(data: st.DataObject, gemma: Path, tmp_path: Path) -> None:
    count = data.draw(st.integers(0, 6))
    layer = st.sets(st.integers(0, 7), min_size=count, max_size=count)
    drop = {i: tuple(sorted(data.draw(layer))) for i in range(2)}
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    prune(gemma, DropMap(drop, 8), tmp_path / "out")
    result = infer_map(gemma, tmp_path / "out")
    assert result.exact
    assert result.map is not None
    assert result.map.drop == drop


def test_a_scaled_dense_ffn_is_named_with_its_factor(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    _edit(pruned, DENSE, lambda x: x * np.float32(1.2))
    result = infer_map(gemma, pruned)
    assert result.map is not None
    assert result.map.drop == drop_map.drop
    assert not result.exact
    assert [c.tensor for c in result.changes] == [DENSE]
    assert result.scaled == {DENSE: pytest.approx(1.2, abs=5e-4)}


def test_a_scaled_bf16_tensor_too(tmp_path: Path, drop_map: DropMap) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = write_gemma4(tmp_path / "base", dtype="bfloat16")
    prune(base, drop_map, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors[DENSE] = (tensors[DENSE].float() * 1.2).to(torch.bfloat16)
    save_file(tensors, file, {"format": "pt"})
    assert infer_map(base, tmp_path / "out").scaled == {DENSE: pytest.approx(1.2, abs=2e-3)}


def test_other_changes_are_named_and_not_called_scaling(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    _edit(pruned, ROUTER, lambda x: x + np.float32(0.01))
    _edit(pruned, "model.norm.weight", lambda x: x[::-1].copy())
    edit_json(pruned / "config.json", lambda c: c.update(rms_norm_eps=1e-5))
    (pruned / "generation_config.json").unlink()
    result = infer_map(gemma, pruned)
    assert result.map is not None
    assert result.map.drop == drop_map.drop, "the experts are recognised in spite of the router"
    text = " | ".join(str(c) for c in result.changes)
    for place in (ROUTER, "model.norm.weight", "rms_norm_eps", "generation_config.json"):
        assert place in text
    assert result.scaled == {}


def test_a_constant_scale_and_twins_do_not_confuse(gemma: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(gemma, tmp_path / "base"))
    for layer in range(2):
        _edit(base, f"model.layers.{layer}.router.per_expert_scale", np.ones_like)
        for role in ("experts.gate_up_proj", "experts.down_proj", "router.proj.weight"):
            _edit(base, f"model.layers.{layer}.{role}", lambda x: x[[0, 1, 2, 3, 4, 5, 6, 2]])
    drop = DropMap({0: (0, 1), 1: (3, 5)}, 8)
    prune(base, drop, tmp_path / "out")
    result = infer_map(base, tmp_path / "out")
    assert result.exact, "experts 2 and 7 are the same; either reading gives the same bytes"


def test_reordered_experts_are_a_change(gemma: Path, pruned: Path, drop_map: DropMap) -> None:
    for role in ("experts.gate_up_proj", "experts.down_proj", "router.proj.weight", "router.per_expert_scale"):
        _edit(pruned, f"model.layers.1.{role}", lambda x: x[[1, 0, 2, 3, 4, 5]])
    result = infer_map(gemma, pruned)
    assert result.map is not None
    assert result.map.drop == drop_map.drop
    assert not result.exact
    assert {c.layer for c in result.changes} == {1}
    assert any("order" in str(c) for c in result.changes)


def test_foreign_experts_give_no_map(gemma: Path, pruned: Path, tmp_path: Path) -> None:
    result = infer_map(write_gemma4(tmp_path / "other", seed=1), pruned)
    assert result.map is None
    assert "layer 0" in result.problems[0]
    _edit(pruned, GATE_UP, lambda x: x[[0, 0, 2, 3, 4, 5]])
    _edit(pruned, GATE_UP.replace("gate_up", "down"), lambda x: x[[0, 0, 2, 3, 4, 5]])
    _edit(pruned, "model.layers.1.router.proj.weight", lambda x: x[[0, 0, 2, 3, 4, 5]])
    result = infer_map(gemma, pruned)
    assert result.map is None
    assert result.problems == ["layer 1: original expert 1 appears twice"]


def test_bad_input(gemma: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        infer_map(gemma, tmp_path)
    with pytest.raises(CheckpointError):
        infer_map(tmp_path, gemma)
