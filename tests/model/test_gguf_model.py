"""Expert tensors of GGUF models by name: counted, checked, a closed world; the files of names themselves."""

from pathlib import Path

import pytest

from helpers.gguf_models import EXPERTS, LAYERS, write_model
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError, MapError
from trimoe.model.family.file import expert_names, families, parse_family
from trimoe.model.family.gguf import standard_names
from trimoe.model.gguf.model import open_gguf_model
from trimoe.model.groups import Groups

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
    model = open_gguf_model(write_model(tmp_path / "m.gguf", metadata=options))
    assert (model.num_experts, model.groups) == (EXPERTS, None)


def test_groups_are_read_and_a_map_must_balance_them(tmp_path: Path) -> None:
    options = {"qwen3moe.expert_group_count": 2, "qwen3moe.expert_group_used_count": 1}
    file = write_model(tmp_path / "m.gguf", metadata=options)
    assert open_gguf_model(file).groups == Groups(2, 1, 2)
    drop = dict.fromkeys(open_gguf_model(file).moe_layers, (0, EXPERTS // 2))
    prune(file, DropMap(drop, EXPERTS), tmp_path / "cut.gguf")
    assert open_gguf_model(tmp_path / "cut.gguf").num_experts == EXPERTS - 2
    with pytest.raises(MapError, match="routing in groups"):
        prune(file, DropMap(dict.fromkeys(drop, (0, 1)), EXPERTS), tmp_path / "other.gguf")


def test_the_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    prints = {
        open_gguf_model(write_model(tmp_path / f"{i}.gguf", **options)).fingerprint
        for i, options in enumerate([{}, {"seed": 1}, {"dtype": "Q5_K"}, {"metadata": {"a": "b"}}, {}])
    }
    assert len(prints) == 4


def test_every_familys_names_are_valid() -> None:
    refused = {family.name for family in families() if family.gguf and family.gguf.refused_model}
    assert refused == {"grovemoe", "deepseek4"}
    for names in (standard_names(), *(family.gguf.names() for family in families() if family.gguf)):
        assert names.required
        assert all(names.concerns_experts(name) for name in (*names.required, *names.optional))
    assert expert_names("an-architecture-of-tomorrow") == standard_names()


def test_a_section_gives_only_the_names_that_differ() -> None:
    standard, gemma = standard_names(), expert_names("gemma4")
    assert "ffn_gate_inp.scale" in gemma.untouched
    assert set(standard.untouched) < set(gemma.untouched)
    assert "ffn_gate_inp.bias" not in gemma.optional
    text = '[gguf]\nrequired = ["ffn_down_exps.weight", "ffn_gate_tid2eid.weight"]'
    section = parse_family(HEAD + text, "x.toml").gguf
    assert section is not None
    assert section.names().optional == ("ffn_down_exps.scale", "ffn_down_exps.input_scale")  # its weights in NVFP4
    assert "ffn_gate_tid2eid.weight" not in section.names().refused


HEAD = 'name = "x"\narchitectures = ["x"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gguf]\nrequird = []", "did you mean `required`"),
        ('[gguf]\nuntouched = ["attn_q.weight"]', "outside of scope"),
        ('[gguf]\noptional = ["ffn_up_exps.weight", "ffn_up_exps.weight"]', "listed more than once"),
        ("[gguf]\nrequired = 3", "gguf.required"),
        ("[gguf", "not valid TOML"),
    ],
)
def test_a_wrong_section_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"family file x\.toml") as caught:
        parse_family(HEAD + text, "x.toml")
    assert message in str(caught.value)


@pytest.mark.parametrize("arch", ["gemma4", "gpt-oss", "qwen3moe"])
@pytest.mark.parametrize("factor", ["scale", "input_scale"])
def test_factors_of_nvfp4_are_cut_in_every_family(arch: str, factor: str, tmp_path: Path) -> None:
    """llama.cpp reads one factor per expert beside an NVFP4 weight, in every architecture."""
    extra = [f"ffn_gate_exps.{factor}", f"ffn_up_exps.{factor}", f"ffn_down_exps.{factor}"]
    model = open_gguf_model(write_model(tmp_path / "model.gguf", arch, extra=extra))
    assert {f"blk.0.{name}" for name in extra} <= model.expert_tensors.keys()
    assert model.expert_tensors[f"blk.0.ffn_up_exps.{factor}"].axis == 0


def test_a_factor_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "model.gguf", "gemma4", extra=["ffn_gate_exps.scale"], metadata={"gemma4.expert_count": 9}
    )
    with pytest.raises(CheckpointError, match="does not fit the metadata"):
        _ = open_gguf_model(path).expert_tensors
