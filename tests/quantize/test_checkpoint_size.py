"""Predicted size of pruned checkpoints against pruned checkpoints."""

from pathlib import Path

import pytest

from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.tiny import path as bundled
from trimoe.quantize.plan.checkpoint_size import checkpoint_bytes


@pytest.mark.parametrize("keep", [8, 24, 32])
def test_what_prune_writes(tmp_path: Path, keep: int) -> None:
    model = open_checkpoint(bundled())
    if keep == model.num_experts:
        assert checkpoint_bytes(model, keep) == (bundled() / "model.safetensors").stat().st_size
        return
    # Other experts in each layer than the prediction assumes: only their number counts.
    drop = {i: tuple(range(i, i + model.num_experts - keep)) for i in range(model.num_layers)}
    prune(bundled(), DropMap(drop, model.num_experts), tmp_path / "o")
    assert checkpoint_bytes(model, keep) == sum(f.stat().st_size for f in (tmp_path / "o").glob("*.safetensors"))
