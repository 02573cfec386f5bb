"""Decoded weights against the quantizers' own libraries, or the published formulas where these do not run on a CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.certify_models import edit_tensors
from helpers.encode import CT, SCHEMES, write_pair
from helpers.families import EXPERTS, MADE, write
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.dequantize.parts import FloatTensor, NotFloats
from trimoe.model.dequantize.plan import float_tensors
from trimoe.model.safetensors import read_array
from trimoe.model.shards import read_index


def _need(oracle: str) -> None:
    if oracle == CT:
        pytest.importorskip("compressed_tensors", reason="compressed-tensors is in the extra 'dev'")


@pytest.mark.parametrize("name", SCHEMES)
def test_every_value_is_that_of_the_oracle(name: str, wide_qwen: Path, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    _need(scheme.oracle)
    quantized, floats = write_pair(wide_qwen, scheme, tmp_path)
    decoded = float_tensors(open_checkpoint(quantized))
    wanted, original = ({name: read_array(info) for name, info in read_index(f).items()} for f in (floats, wide_qwen))
    compared = set()
    for tensor, values in decoded.items():
        have, names = values.array(), _names(tensor)
        want = _joined(wanted, names)
        assert have.shape == want.shape == values.shape
        assert np.abs(have - want).max() <= 1e-6 * np.abs(want).max(), tensor
        source = _joined(original, names)  # the encoder is not wrong in the same way
        assert np.linalg.norm(have - source) < 0.25 * np.linalg.norm(source), tensor
        compared |= {name for row in names for name in row}
    assert compared == wanted.keys()


def _names(tensor: str) -> list[list[str]]:
    """The matrices of each expert in a tensor: a stack of experts, or a tensor of the checkpoint."""
    module, _, last = tensor.rpartition(".")
    if not module.endswith(".experts"):
        return [[tensor]]
    parts = ["gate_proj", "up_proj"] if last == "gate_up_proj" else [last]
    return [[f"{module}.{expert}.{part}.weight" for part in parts] for expert in range(EXPERTS)]


def _joined(arrays: dict[str, np.ndarray], names: list[list[str]]) -> np.ndarray:
    if len(names) == 1:
        return arrays[names[0][0]]
    return np.stack([np.concatenate([arrays[name] for name in row]) for row in names])


def test_mxfp4_stacks_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    made = next(made for made in MADE if made.name == "gpt_oss-mxfp4")
    folder = write(made, tmp_path / "gpt")
    index, decoded = read_index(folder), float_tensors(open_checkpoint(folder))
    stacks = [name.removesuffix("_blocks") for name in index if name.endswith("_blocks")]
    assert len(stacks) == 2 * len(made.moe_layers)
    for name in stacks:
        blocks, scales = (
            torch.from_numpy(read_array(index[name + s]).reshape(index[name + s].shape).copy())
            for s in ("_blocks", "_scales")
        )
        want = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert torch.equal(torch.from_numpy(decoded[name].array()), want)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "gptq", "bits": 3}, "GPTQ with 3 bits is not decoded"),
        ({"quant_method": "awq", "version": "gemv"}, "version gemv"),
    ],
)
def test_a_form_without_a_decoder_is_named(settings: dict, reason: str, wide_qwen: Path, tmp_path: Path) -> None:
    scheme = replace(SCHEMES["awq" if settings["quant_method"] == "awq" else "gptq"], settings=settings)
    quantized, _ = write_pair(wide_qwen, scheme, tmp_path)
    with pytest.raises(NotFloats, match=reason):
        float_tensors(open_checkpoint(quantized))


def test_scales_of_the_cache_are_left_out(wide_qwen: Path, tmp_path: Path) -> None:
    quantized, _ = write_pair(wide_qwen, SCHEMES["fp8 block"], tmp_path)
    before = float_tensors(open_checkpoint(quantized)).keys()
    edit_tensors(quantized, lambda t: t.update({"model.layers.0.self_attn.k_proj.k_scale": ("F32", (), b"\0\0\x80?")}))
    assert float_tensors(open_checkpoint(quantized)).keys() == before
    with pytest.raises(NotFloats, match="k_scale"):
        float_tensors(open_checkpoint(quantized), weights_only=True)


def test_each_packed_matrix_has_its_own_number_of_bits(wide_qwen: Path, tmp_path: Path) -> None:
    """Settings with two groups do not say which matrix is in which; the matrix does."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is in the extra 'dev'")
    four, eight = SCHEMES["ct int4"], SCHEMES["ct int8"]
    groups = {f"group_{i}": s.settings["config_groups"]["group_0"] for i, s in enumerate((four, eight))}
    mixed = replace(four, settings={**four.settings, "config_groups": groups})
    quantized, floats = write_pair(wide_qwen, mixed, tmp_path)
    name = "model.layers.1.self_attn.q_proj.weight"
    want = read_array(read_index(floats)[name])
    assert np.allclose(float_tensors(open_checkpoint(quantized))[name].array(), want, rtol=1e-6)


def test_an_unquantized_checkpoint_is_left_as_it_is(wide_qwen: Path) -> None:
    index = read_index(wide_qwen)
    assert float_tensors(open_checkpoint(wide_qwen)) == {
        name: FloatTensor(name, info.dtype, info.shape, info) for name, info in index.items()
    }
