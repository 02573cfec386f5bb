"""Expert tensors of GGUF models by name: counted, checked, a closed world; the files of names themselves."""

from pathlib import Path

import pytest

from helpers.gguf_models import EXPERTS, LAYERS, write_model
from trimoe.errors import CheckpointError
from trimoe.model.gguf.model import all_gguf_archs, open_gguf_model, parse_gguf_arch

SCALES = ("ffn_down_exps.scale", "ffn_gate_exps.input_scale")


@pytest.mark.parametrize(
    ("arch", "options", "roles"),
    [
        ("qwen3moe", {}, {"ffn_gate_exps.weight", "ffn_up_exps.weight"}),
        ("gemma4", {"fused": True, "extra": SCALES[:1]}, {"ffn_gate_up_exps.weight", "ffn_down_exps.scale"}),
        ("gpt-oss", {}, {"ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"}),
        ("deepseek2", {"shared": True, "dense": (0,), "extra": ("exp_probs_b.bias",)}, {"exp_probs_b.bias"}),
        ("glm4moe", {"shared": True, "dense": (0,), "extra": ("exp_probs_b.bias",)}, {"exp_probs_b.bias"}),
        ("qwen35moe", {"shared": True}, set()),
        ("an-arch-of-tomorrow", {"extra": SCALES}, set(SCALES)),
    ],
)
def test_expert_tensors_by_name(arch: str, options: dict, roles: set[str], tmp_path: Path) -> None:
    model = open_gguf_model(write_model(tmp_path / "m.gguf", arch, **options))
    assert (model.architecture, model.num_layers, model.num_experts, model.top_k) == (arch, LAYERS, EXPERTS, 2)
    found = {tensor.role for tensor in model.expert_tensors.values()}
    assert found >= roles | {"ffn_gate_inp.weight", "ffn_down_exps.weight"}
    assert not [name for name in model.expert_tensors if "shexp" in name or "norm" in name or "inp.scale" in name]
    assert model.moe_layers == [layer for layer in range(LAYERS) if layer not in options.get("dense", ())]
    assert all(tensor.info.shape[0] == EXPERTS for tensor in model.expert_tensors.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": ("ffn_gate_exps.zero_point",)}, "zero_point cannot be cut: its name"),
        ({"extra": ("router_bias",)}, "router_bias cannot be cut"),
        ({"extra": ("ffn_gate_chexps.weight",)}, "share chunk experts"),
        ({"extra": ("ffn_gate_tid2eid.weight",)}, "table"),
        ({"extra": ("ffn_gate.3.weight",)}, "convert it again"),
        ({"drop": ("blk.1.ffn_gate_inp.weight",)}, "blk.1.ffn_gate_inp.weight is missing"),
        ({"metadata": {"qwen3moe.expert_group_count": 4}}, "routes experts in groups"),
        ({"metadata": {"qwen3moe.block_count": 2}}, "does not fit the metadata"),
        ({"metadata": {"qwen3moe.expert_count": 9}}, "does not fit the metadata"),
        ({"metadata": {"qwen3moe.expert_count": 0}}, "dense model"),
        ({"metadata": {"qwen3moe.expert_count": "8"}}, "no usable qwen3moe.expert_count"),
        ({"metadata": {"qwen3moe.expert_used_count": 9}}, "more experts than there are"),
        ({"metadata": {"qwen3moe.expert_used_count": 0}}, "no usable qwen3moe.expert_used_count"),
        ({"dense": (0, 1, 2)}, "no expert tensors"),
        ({"arch": "grovemoe"}, "cannot be cut exactly"),
        ({"arch": "deepseek4"}, "cannot be cut exactly"),
        ({"arch": "gpt-oss", "drop": ("blk.0.ffn_up_exps.bias",)}, "blk.0.ffn_up_exps.bias is missing"),
        ({"arch": "gemma4", "extra": ("ffn_gate_inp.bias",)}, "ffn_gate_inp.bias cannot be cut"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_gguf_model(write_model(tmp_path / "m.gguf", **options))


def test_groups_of_one_are_no_groups(tmp_path: Path) -> None:
    options = {"qwen3moe.expert_group_count": 1, "qwen3moe.expert_group_used_count": 1}
    assert open_gguf_model(write_model(tmp_path / "m.gguf", metadata=options)).num_experts == EXPERTS


def test_the_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    prints = {
        open_gguf_model(write_model(tmp_path / f"{i}.gguf", **options)).fingerprint
        for i, options in enumerate([{}, {"seed": 1}, {"dtype": "Q5_K"}, {"metadata": {"a": "b"}}, {}])
    }
    assert len(prints) == 4


def test_every_shipped_file_of_names_is_valid() -> None:
    archs = all_gguf_archs()
    assert {"", "gemma4", "gpt-oss", "grovemoe", "deepseek4"} <= archs.keys()
    for arch in archs.values():
        assert arch.required
        assert all(arch.concerns_experts(name) for name in (*arch.required, *arch.optional))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('architectures = ["x"]\nrequird = []', "requird"),
        ('architectures = ["x"]\nuntouched = ["attn_q.weight"]', "outside of scope"),
        ('architectures = ["x"]\noptional = ["ffn_up_exps.weight", "ffn_up_exps.weight"]', "stands twice"),
        ("architectures = 3", "architectures"),
        ("architectures = [", "not valid"),
    ],
)
def test_a_wrong_file_of_names_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_gguf_arch(text, "x.toml", all_gguf_archs()[""])
