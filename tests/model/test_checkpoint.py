"""Opening a checkpoint: families found, mismatches named, fingerprints that identify."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.hand_made import (
    PER_EXPERT,
    TEST_FAMILIES,
    TRANSPOSED,
    gemma_arrays,
    gemma_config,
    per_expert_arrays,
    per_expert_config,
    transposed_arrays,
    transposed_config,
    write_checkpoint,
)
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.family.file import SHIPPED, extra_families, families, parse_family
from trimoe.model.family.hf import form
from trimoe.model.finite import check_finite


@pytest.fixture
def more_families() -> Iterator[None]:
    """Layouts that no shipped family has."""
    with extra_families(*TEST_FAMILIES):
        yield


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_gemma4_text_and_multimodal(tmp_path: Path, prefix: str) -> None:
    config = gemma_config()
    if "language" in prefix:
        config = {"model_type": "gemma4", "text_config": config, "num_experts": 99}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", gemma_arrays(prefix=prefix), config))
    assert (checkpoint.family.name, checkpoint.num_layers, checkpoint.num_experts, checkpoint.top_k) == (
        "gemma4",
        2,
        8,
        2,
    )
    assert checkpoint.moe_layers == (0, 1)
    assert checkpoint.prefix == prefix + "layers.{L}."
    cut = {tensor.role for tensor in checkpoint.expert_tensors.values()}
    assert cut == {"gate_up", "down", "router", "per_expert_scale"}
    assert f"{prefix}layers.0.router.scale" not in checkpoint.expert_tensors
    assert checkpoint.config_scope == (("text_config",) if "language" in prefix else ())


@pytest.mark.usefixtures("more_families")
def test_layouts_of_later_families_are_data(tmp_path: Path) -> None:
    one = open_checkpoint(write_checkpoint(tmp_path / "a", per_expert_arrays(), per_expert_config()))
    assert one.hf is not PER_EXPERT.hf
    assert (one.family.name, one.moe_layers, one.num_layers) == ("per_expert", (1, 2), 3)
    tensor = one.expert_tensors["model.layers.2.mlp.experts.4.down_proj.weight"]
    assert (tensor.role, tensor.layer, tensor.expert) == ("down", 2, 4)
    other = open_checkpoint(write_checkpoint(tmp_path / "b", transposed_arrays(), transposed_config()))
    assert other.family.name == TRANSPOSED.name
    assert other.expert_tensors["model.layers.0.mlp.router.weight"].axis == 1


@pytest.mark.usefixtures("more_families")
def test_the_count_by_another_name(tmp_path: Path) -> None:
    config = per_expert_config()
    config["num_local_experts"] = config.pop("n_routed_experts")
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", per_expert_arrays(), config))
    assert checkpoint.hf.config.num_experts == "num_local_experts"


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"config.json not found"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a safetensors checkpoint"):
        open_checkpoint(tmp_path)


def test_a_dense_model(tmp_path: Path) -> None:
    arrays = {name: a for name, a in gemma_arrays().items() if "experts" not in name and "router" not in name}
    config = {key: value for key, value in gemma_config().items() if key != "num_experts"}
    with pytest.raises(CheckpointError, match="dense model") as caught:
        open_checkpoint(write_checkpoint(tmp_path / "m", arrays, config))
    assert "gemma4" in str(caught.value)


def test_a_model_that_counts_experts_is_not_called_dense(tmp_path: Path) -> None:
    arrays = {name: a for name, a in gemma_arrays().items() if "experts" not in name and "router" not in name}
    with pytest.raises(CheckpointError, match="no experts that trimoe knows") as caught:
        open_checkpoint(write_checkpoint(tmp_path / "m", arrays, gemma_config()))
    assert "num_experts = 8 in config.json" in str(caught.value)


def test_an_unknown_family(tmp_path: Path) -> None:
    config = gemma_config() | {"model_type": "gemma9"}
    arrays = {name.replace("router.proj", "chooser.proj"): array for name, array in gemma_arrays().items()}
    with pytest.raises(CheckpointError, match="no experts that trimoe knows") as caught:
        open_checkpoint(write_checkpoint(tmp_path / "m", arrays, config))
    assert "gemma9" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, "no usable num_experts"),
        ({"num_experts": True}, "no usable num_experts"),
        ({"top_k_experts": 9}, "more experts than there are"),
        ({"num_experts": 9}, r"tensor model\.layers\.0\.experts\.gate_up_proj does not fit"),
        ({"hidden_size": 7}, r"tensor model\.layers\.0\.experts\.gate_up_proj does not fit"),
        ({"moe_intermediate_size": 5}, r"tensor model\.layers\.0\.experts\.gate_up_proj does not fit"),
        ({"num_hidden_layers": 3}, r"tensor model\.layers\.2\.experts\.gate_up_proj is missing"),
        ({"num_hidden_layers": 1}, r"tensor model\.layers\.1\.\S+ belongs to the experts"),
    ],
)
def test_config_of_another_model(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(write_checkpoint(tmp_path / "m", gemma_arrays(), gemma_config() | change))
    assert caught.value.expected
    assert caught.value.remedy


def test_a_missing_and_a_misshapen_tensor_are_named(tmp_path: Path) -> None:
    arrays = gemma_arrays()
    name = "model.layers.1.router.per_expert_scale"
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        open_checkpoint(
            write_checkpoint(tmp_path / "a", {k: v for k, v in arrays.items() if k != name}, gemma_config())
        )
    with pytest.raises(CheckpointError, match=f"tensor {name} does not fit"):
        open_checkpoint(write_checkpoint(tmp_path / "b", arrays | {name: arrays[name][:-1]}, gemma_config()))


@pytest.mark.parametrize(
    "stray",
    ["model.layers.0.experts.gate_up_proj_scale", "model.layers.1.router.bias", "mtp.layers.0.mlp.experts.0.up.weight"],
)
def test_an_unexplained_companion_is_refused(tmp_path: Path, stray: str) -> None:
    arrays = gemma_arrays() | {stray: np.zeros((8, 1), np.float32)}
    with pytest.raises(CheckpointError, match=f"tensor {stray} belongs to the experts"):
        open_checkpoint(write_checkpoint(tmp_path / "m", arrays, gemma_config()))


def test_nan_is_found_and_named(tmp_path: Path) -> None:
    arrays = gemma_arrays()
    folder = write_checkpoint(tmp_path / "good", arrays, gemma_config())
    check_finite(open_checkpoint(folder))
    arrays["model.layers.1.experts.down_proj"].reshape(-1)[17] = 0x7FC0  # a bf16 NaN
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "bad", arrays, gemma_config()))
    check_finite(checkpoint, ["router", "per_expert_scale"])
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.experts\.down_proj holds NaN") as caught:
        check_finite(checkpoint)
    assert "element 17" in str(caught.value)
    arrays["model.layers.0.router.per_expert_scale"][3] = np.inf
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "worse", arrays, gemma_config()))
    with pytest.raises(CheckpointError, match="per_expert_scale holds NaN or infinite"):
        check_finite(checkpoint, ["per_expert_scale"])


def test_fingerprint_identifies_content_not_place_or_sharding(tmp_path: Path) -> None:
    arrays = gemma_arrays()
    one = open_checkpoint(write_checkpoint(tmp_path / "a", arrays, gemma_config())).fingerprint
    sharded = write_checkpoint(tmp_path / "b", arrays, gemma_config(), [i % 3 for i in range(len(arrays))])
    assert open_checkpoint(sharded).fingerprint == one
    config = write_checkpoint(tmp_path / "c", arrays, gemma_config() | {"rms_norm_eps": 1e-5})
    assert open_checkpoint(config).fingerprint != one
    arrays["model.norm.weight"][0] ^= 1
    assert open_checkpoint(write_checkpoint(tmp_path / "d", arrays, gemma_config())).fingerprint != one


def test_opening_needs_no_torch(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", gemma_arrays(), gemma_config())
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['safetensors'] = None\n"
        "from trimoe.cut.prune import prune; from trimoe.choose.dropmap import DropMap\n"
        f"prune({str(folder)!r}, DropMap({{0: (1,), 1: (2,)}}), {str(tmp_path / 'out')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 7


def test_shipped_families_are_valid_and_forms_are_general() -> None:
    assert {"gemma4", "qwen3_moe", "gpt_oss", "llama4"} <= {family.name for family in families()}
    assert all(family.follows and family.name in family.model_types for family in families() if family.hf)
    assert form("model.layers.{L}.mlp.experts.{E}.w1.weight") == form("model.layers.17.mlp.experts.3.w1.weight")
    assert form("model.layers.3.w1") != form("model.layers.x3.w1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[hf.config]", "[hf.config]\nhiden = 1"), "hiden"),
        (('"experts.", "router."', '"router."'), "inside scopes"),
        (('shape = ["E", "2I", "H"]', 'shape = ["E", "2Q", "H"]'), "2Q"),
        (('shape = ["E", "2I", "H"]', 'shape = ["I", "H"]'), "exactly one of E"),
        (('"model.layers.{L}."', '"model.layers."'), "layer_prefixes"),
        (('name = "gemma4"', "name ="), "not valid"),
        (('score = "softmax"', 'score = "tanh"'), "hf.routing.score"),
        (("\n[hf]\n", '\n[hf]\ndraft_prefix = "mtp."\n'), "draft_prefix needs {L}"),
        (
            ("[hf.roles.router]", '[hf.layouts.x.other]\ntensor = "mlp.w"\nshape = ["E"]\n[hf.roles.router]'),
            "inside scopes",
        ),
        (("[hf.roles.router]", "[hf.layouts.x]\n[hf.roles.router]"), "a layout needs a required tensor of its own"),
        (
            ("[hf.roles.router]", '[hf.layouts.x.router]\ntensor = "experts.x"\nshape = ["E"]\n[hf.roles.router]'),
            "is both in [hf.roles] and in a layout",
        ),
    ],
)
def test_a_family_file_with_a_mistake(change: tuple[str, str], message: str) -> None:
    text = (SHIPPED / "gemma4.toml").read_text()
    assert change[0] in text
    with pytest.raises(CheckpointError, match=r"family file bad\.toml") as caught:
        parse_family(text.replace(*change, 1), "bad.toml")
    assert message in str(caught.value)
