"""A checkpoint of an unknown `model_type` is read as a family only if that explains all of its expert tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.families import MADE, Made
from helpers.hand_made import per_expert_arrays, per_expert_config, write_checkpoint
from trimoe.certify.certify import certify
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint

Checkpoints = Callable[[Made], Path]
UNKNOWN = "model_of_tomorrow"


def with_config(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with keys of config.json (and of text_config, where it has them) changed."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    for scope in (config, config.get("text_config", {})):
        scope.update({key: value for key, value in changes.items() if scope is config or key in scope})
    (target / "config.json").write_text(json.dumps(config))
    return target


def made(name: str) -> Made:
    return next(one for one in MADE if one.name == name)


@pytest.mark.parametrize("one", MADE, ids=lambda one: one.name)
def test_every_family_under_an_unknown_type(one: Made, family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = family_checkpoint(one)
    known = open_checkpoint(source)
    path = with_config(source, tmp_path / "unknown", model_type=UNKNOWN)
    if known.hf.routing.weight_on == "input":  # nothing in the checkpoint says so
        with pytest.raises(CheckpointError, match=r"no experts that trimoe knows|does not fit config\.json"):
            open_checkpoint(path)
        return
    read = open_checkpoint(path)
    # Families may share names; what is cut, and how the router prefers one expert to another, is the same.
    assert read.expert_tensors.keys() == known.expert_tensors.keys()
    selects = any(role.selects for role in known.hf.roles.values())
    assert not selects or read.hf.routing == known.hf.routing
    assert any(f"read as {read.family.name}; model_type {UNKNOWN} is unknown" in note for note in read.warnings)
    assert not any("is unknown" in note for note in known.warnings)


def test_a_model_under_an_unknown_type_is_cut_and_its_bytes_are_proven(
    family_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_config(family_checkpoint(made("qwen3_moe")), tmp_path / "unknown", model_type=UNKNOWN)
    base = open_checkpoint(path)
    drop = DropMap(dict.fromkeys(base.moe_layers, (1, 4)))
    prune(path, drop, tmp_path / "cut")
    proof = certify(path, tmp_path / "cut", logits=False)
    assert not [check.name for check in proof.checks if check.status == "failed"]
    assert main(["inspect", str(path)]) == 0
    assert f"model_type {UNKNOWN} is unknown" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("named", "score"),
    [({}, "sigmoid"), ({"scoring_func": "sigmoid"}, "sigmoid"), ({"scoring_func": "softmax"}, "softmax")],
)
def test_the_scoring_function_that_config_names_is_used(
    named: dict[str, str], score: str, family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = with_config(family_checkpoint(made("deepseek_v3")), tmp_path / "x", model_type="kimi_k9", **named)
    assert open_checkpoint(path).hf.routing.score == score


def test_groups_are_not_assumed_for_a_type_that_does_not_mention_them(
    family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = with_config(family_checkpoint(made("deepseek_v3")), tmp_path / "x", model_type=UNKNOWN)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "n_group"}))
    assert open_checkpoint(path).cannot_cut is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring_func": "sqrtsoftplus"}, "scores experts with sqrtsoftplus"),
        ({"num_experts_per_tok": None}, "no experts that trimoe knows"),
        ({"moe_intermediate_size": 5}, "does not fit config.json"),
    ],
)
def test_settings_that_no_family_explains(
    changes: dict[str, Any], message: str, family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = with_config(family_checkpoint(made("deepseek_v3")), tmp_path / "x", model_type=UNKNOWN, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("changes", [{"n_group": 2}, {"num_expert_group": 2}, {"moe_num_groups": 4}])
def test_an_unknown_type_that_routes_in_groups_is_not_cut(
    changes: dict[str, int], family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = with_config(family_checkpoint(made("qwen3_moe")), tmp_path / "x", model_type=UNKNOWN, **changes)
    read = open_checkpoint(path)
    assert read.cannot_cut is not None
    assert next(iter(changes)) in read.cannot_cut
    plain = with_config(path, tmp_path / "y", **dict.fromkeys(changes, 1), num_key_value_groups=2, mamba_n_groups=8)
    assert open_checkpoint(plain).cannot_cut is None


@pytest.mark.parametrize("name", ["mlp.e_score_correction_bias", "mlp.gate_scale", "feed.router.expert_bias"])
def test_a_tensor_per_expert_that_no_family_has_is_refused(name: str, tmp_path: Path) -> None:
    arrays = per_expert_arrays() | {"model.layers.0.mlp.down_proj.weight": np.zeros((5, 3), np.float32)}
    config = per_expert_config() | {"model_type": UNKNOWN}
    write_checkpoint(tmp_path / "known", arrays, config)
    experts = open_checkpoint(tmp_path / "known").num_experts
    extra = {f"model.layers.0.{name}": np.ones(experts, np.float32)}
    write_checkpoint(tmp_path / "extra", arrays | extra, config)
    with pytest.raises(CheckpointError, match=r"may hold one value per expert|has no role for it") as caught:
        open_checkpoint(tmp_path / "extra")
    assert name in str(caught.value)


def test_a_known_type_with_the_tensors_of_another_family_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x", per_expert_arrays(), per_expert_config() | {"model_type": "mixtral"})
    with pytest.raises(CheckpointError, match="no experts that trimoe knows"):
        open_checkpoint(tmp_path / "x")
