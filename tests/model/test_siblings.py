"""Quantized experts that lack what their siblings have: refused and named; activations' scales are a warning."""

from pathlib import Path

import pytest

from helpers.quantized import MODULES, modelopt_fp8, modelopt_nvfp4, plain, qwen, qwen_config, write
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import open_checkpoint

EXPERT = "model.layers.1.mlp.experts.3.up_proj"

OPTIONAL = [
    ("ct-nvfp4", "weight_global_scale"),
    ("ct-int4", "weight_zero_point"),
    ("ct-int4", "weight_shape"),
    ("modelopt-nvfp4", "weight_scale_2"),
    ("gptq", "qzeros"),
    ("gptq", "g_idx"),
    ("bnb-nf4", "weight.nested_absmax"),
    ("bnb-nf4", "weight.nested_quant_map"),
    ("bnb-nf4", "weight.quant_state.bitsandbytes__nf4"),
]


@pytest.mark.parametrize(("scheme", "suffix"), OPTIONAL)
def test_one_matrix_without_what_its_siblings_have_is_refused(scheme: str, suffix: str, tmp_path: Path) -> None:
    module, settings = MODULES[scheme]
    entries = qwen(module)
    assert open_checkpoint(write(tmp_path / "whole", entries, qwen_config(settings))).warnings == []
    del entries[f"{EXPERT}.{suffix}"]
    damaged = write(tmp_path / "damaged", entries, qwen_config(settings))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(damaged)
    assert caught.value.subject == f"tensor {EXPERT}.{suffix} is missing"
    assert "7 of 8 up matrices in model.layers.1 have it" in caught.value.expected


@pytest.mark.parametrize(("scheme", "suffix"), OPTIONAL)
def test_one_matrix_that_alone_has_a_tensor_is_refused(scheme: str, suffix: str, tmp_path: Path) -> None:
    module, settings = MODULES[scheme]
    entries = {n: e for n, e in qwen(module).items() if not n.endswith(suffix) or n.startswith(f"{EXPERT}.")}
    with pytest.raises(CheckpointError, match=f"{suffix} is missing"):
        _ = open_checkpoint(write(tmp_path / "model", entries, qwen_config(settings))).expert_tensors


@pytest.mark.parametrize(("scheme", "suffix"), [("ct-nvfp4", "input_global_scale"), ("modelopt-nvfp4", "input_scale")])
def test_a_missing_scale_of_activations_is_a_warning(scheme: str, suffix: str, tmp_path: Path) -> None:
    module, settings = MODULES[scheme]
    entries = qwen(module)
    del entries[f"{EXPERT}.{suffix}"]
    model = open_checkpoint(write(tmp_path / "model", entries, qwen_config(settings)))
    assert model.expert_tensors
    assert len(model.warnings) == 1
    assert f"{EXPERT}.{suffix} is missing" in model.warnings[0]


def test_a_whole_role_of_a_layer_without_the_factor_is_refused(tmp_path: Path) -> None:
    module, settings = MODULES["modelopt-nvfp4"]
    entries = qwen(module)
    for expert in range(8):
        del entries[f"model.layers.1.mlp.experts.{expert}.down_proj.weight_scale_2"]
    with pytest.raises(CheckpointError, match=r"down_proj\.weight_scale_2 is missing"):
        _ = open_checkpoint(write(tmp_path / "model", entries, qwen_config(settings))).expert_tensors


def test_mixtures_of_types_are_no_fault(tmp_path: Path) -> None:
    """FP8 experts have no second scale, and unquantized ones have none at all."""
    names = [f"model.layers.{layer}.mlp.experts.{e}.down_proj" for layer in (0, 1) for e in range(8)]
    mixed = dict.fromkeys(names[:8], modelopt_fp8) | dict.fromkeys(names[8:], plain)
    model = open_checkpoint(
        write(tmp_path / "model", qwen(modelopt_nvfp4, mixed), qwen_config(MODULES["modelopt-nvfp4"][1]))
    )
    assert model.expert_tensors
    assert model.warnings == []
