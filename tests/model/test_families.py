"""Every family is recognised by its tensor names, and `trimoe inspect` says what there is to cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from families import EXPERTS, MADE, Made

from trimoe.cli.main import main
from trimoe.errors import CheckpointError
from trimoe.model.arch import all_archs, detect, form
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import read_index

Checkpoints = Callable[[Made], Path]


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.name)
def test_inspect(made: Made, family_checkpoint: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    path = family_checkpoint(made)
    assert main(["inspect", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["family"], data["experts"], data["top_k"]) == (made.arch, EXPERTS, made.top_k)
    assert data["moe_layers"] == len(made.moe_layers)
    assert data["shards"] == made.shards
    assert data["cannot_cut"] is None
    # Whatever a feed-forward block has along the experts is among the roles: by names and shapes, without family data.
    cut = open_checkpoint(path).expert_tensors
    for name, info in read_index(path).items():
        inside = any(part in name for part in ("mlp.", "feed_forward.", "block_sparse_moe.", "router.", ".experts."))
        if inside and "vis" not in name and (EXPERTS in info.shape or ".experts." in name):
            assert name in cut
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"family             {made.arch} (" in text
    assert ("drafting blocks" in text) == bool(data["draft_blocks"])


def test_inspect_says_why_a_model_cannot_be_cut(
    family_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = family_checkpoint(next(m for m in MADE if m.name == "deepseek_v3"))
    path = Path(shutil.copytree(source, tmp_path / "grouped"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"n_group": 4}))
    assert main(["inspect", str(path)]) == 0
    assert "no: experts are routed in groups (n_group = 4)" in capsys.readouterr().out


def test_every_family_has_a_checkpoint_here() -> None:
    assert {arch.name for arch in all_archs()} == {made.arch for made in MADE}
    layouts = {layout for arch in all_archs() for layout in arch.layouts}
    assert layouts == {"mxfp4", "transposed", "stacked", "per_expert"}


def test_no_two_families_answer_to_one_checkpoint(family_checkpoint: Checkpoints) -> None:
    """`model_type` tells apart families that share tensor names, so no type may be in two files."""
    kinds = [kind for arch in all_archs() for kind in arch.model_types]
    assert len(kinds) == len(set(kinds))
    for made in MADE:
        path = family_checkpoint(made)
        names, config = set(read_index(path)), json.loads((path / "config.json").read_text())
        found = [arch.name for arch in all_archs() if arch.recognise({form(n) for n in names})]
        assert made.arch in found
        others = tuple(arch for arch in all_archs() if arch.name != made.arch)
        with pytest.raises(CheckpointError, match=r"no experts that trimoe knows|dense model"):
            detect(names, config, others)
