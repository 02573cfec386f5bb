"""Quantized checkpoints in this process: NVFP4 is decoded as it is stored, everything else is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import quantized as q
from helpers.families import MADE, Made, write
from trimoe.certify.certify import certify, obstacle
from trimoe.choose.dropmap import DropMap
from trimoe.cli.main import main
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.model.dequantize.parts import NotFloats
from trimoe.model.floats import as_floats, require_floats, why_not_floats
from trimoe.model.generate import load_model
from trimoe.model.safetensors import read_array
from trimoe.model.shards import read_index
from trimoe.model.tiny import path as bundled
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4
from trimoe.quantize.nvfp4.rules import LAYOUTS
from trimoe.serve import planned

QWEN = next(made for made in MADE if made.name == "qwen3_moe")
WIDE = replace(
    QWEN,
    name="qwen3_moe-wide",
    settings={**QWEN.settings, "hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64},
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with stacks (gemma4) and one with an expert per tensor (qwen3_moe)."""
    return {"gemma4": bundled(), "qwen3_moe": write(WIDE, tmp_path_factory.mktemp("wide") / "wide")}


@pytest.fixture(scope="module")
def made(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("nvfp4")

    def one(family: str, layout: str) -> Path:
        out = folder / f"{family}-{layout}"
        if not out.exists():
            quantize_nvfp4(sources[family], out, layout=layout)
        return out

    return one


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["gemma4", "qwen3_moe"])
def test_the_loaded_model_has_the_values_of_the_checkpoint(
    family: str, layout: str, made: Callable[[str, str], Path], sources: dict[str, Path]
) -> None:
    source, model = dict(load_model(sources[family]).named_parameters()), load_model(made(family, layout))
    experts = [name for name in source if ".experts." in name and name.endswith("_proj")]
    assert len(experts) >= 4
    for name, value in model.named_parameters():
        original = source[name].detach().double()
        error = float((value.detach().double() - original).norm() / original.norm())
        assert error < 0.15, name  # NVFP4 loses about a tenth; random values lose all of it
        assert value.dtype.is_floating_point
    loaded = dict(model.named_parameters())
    assert all(not loaded[name].equal(source[name]) for name in experts), "quantized, so not the original's values"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stacks_and_matrices_are_decoded_exactly(layout: str, made: Callable[[str, str], Path]) -> None:
    """Each row of a stack is the expert's own matrix, decoded independently here."""
    folder = made("gemma4", layout)
    codes, factor = ("weight", "weight_scale_2") if layout == "modelopt" else ("weight_packed", "weight_global_scale")
    index = read_index(folder)
    base = "model.layers.1.experts.5.up_proj."
    packed = read_array(index[base + codes])
    low, high = packed & 15, packed >> 4
    signs = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = np.array(signs + [-one for one in signs])
    values = np.stack([table[low], table[high]], -1).reshape(packed.shape[0], -1)
    import torch

    raw = read_array(index[base + "weight_scale"]).reshape(packed.shape[0], -1)
    scales = torch.from_numpy(raw.copy()).view(torch.float8_e4m3fn).double().numpy()
    whole = float(read_array(index[base + factor]).reshape(-1)[0])
    expected = values * np.repeat(scales, 16, 1) * (whole if layout == "modelopt" else 1 / whole)
    with as_floats(folder) as floats:
        assert "quantization_config" not in json.loads((floats / "config.json").read_text())
        assert not (floats / "hf_quant_config.json").exists()
        stack = read_array(read_index(floats)["model.layers.1.experts.gate_up_proj"])
        kept = floats
    assert not kept.exists()
    assert np.allclose(stack[5, stack.shape[1] // 2 :], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["gemma4", "qwen3_moe"])
def test_the_documented_recipe_ends_proven(
    family: str, layout: str, made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Prune an NVFP4 checkpoint and certify it: bytes and logits."""
    folder = made(family, layout)
    drop = DropMap({0: (0, 3)}, 32) if family == "gemma4" else DropMap(WIDE.drop, 8)
    if family == "gemma4":
        drop = DropMap(dict.fromkeys(range(4), (0, 3)), 32)
    prune(folder, drop, tmp_path / "out")
    assert obstacle(folder) is None
    certificate = certify(folder, tmp_path / "out", map=drop)
    assert certificate.proven, {c.name: c.detail for c in certificate.checks}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eval_runs_on_its_own_output(layout: str, made: Callable[[str, str], Path], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    command = ["eval", str(made("gemma4", layout)), "--bench", "tiny-math", "--limit", "8", "--json"]
    assert main([*command, "--log", str(tmp_path / "runs.db")]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["n"], run["correct"] >= 6) == (8, True)  # 7 of 8 unquantized; random experts have none


def test_a_form_without_a_decoder_is_refused_by_name(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    settings = {"quant_method": "gptq", "bits": 3}
    folder = q.write(tmp_path / "model", q.qwen(q.gptq), q.qwen_config(settings))
    with pytest.raises(CheckpointError, match="is quantized and cannot be run here") as caught:
        require_floats(folder)
    assert "GPTQ with 3 bits is not decoded" in caught.value.actual
    code = main(["eval", str(folder), "--bench", "tiny-math", "--log", str(tmp_path / "runs.db")])
    text = capsys.readouterr().err
    assert (code, "Traceback" in text, "cannot be run here" in text) == (3, False, True)
    assert not (tmp_path / "runs.db").exists()


def test_quantized_activations_are_not_evaluated_as_if_they_were_not(
    made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(made("gemma4", "modelopt"), tmp_path / "w4a4"))
    tensors = load_file(folder / "model.safetensors")
    one = next(name for name in tensors if name.endswith("weight_scale_2"))
    import torch

    tensors[one.replace("weight_scale_2", "input_scale")] = torch.tensor(0.5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "input_scale" in str(why_not_floats(folder))
    with pytest.raises(NotFloats), as_floats(folder):
        pass


def test_a_config_that_claims_what_the_weights_are_not(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sources["qwen3_moe"], tmp_path / "claims"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "modelopt"}}))
    assert "no weight is stored in a quantized form" in str(why_not_floats(folder))


def test_weights_that_do_not_fit_the_config_are_no_traceback(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sources["qwen3_moe"], tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": 32}))
    with pytest.raises(CheckpointError, match="does not load exactly: mismatched_keys"):
        load_model(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_does_not_serve_it(layout: str, made: Callable[[str, str], Path]) -> None:
    """It would start: with random experts (gemma4), or with scales left out (qwen3_moe)."""
    for family in ("gemma4", "qwen3_moe"):
        with pytest.raises(CheckpointError, match="not known to run it as stored"):
            planned(made(family, layout), engine="transformers")
    assert planned(made("gemma4", layout), engine="vllm")[2] is not None


def test_mxfp4_and_floats_are_left_as_they_are(sources: dict[str, Path], tmp_path: Path) -> None:
    mxfp4: Made = next(made for made in MADE if made.name == "gpt_oss-mxfp4")
    for folder in (sources["qwen3_moe"], write(mxfp4, tmp_path / "gpt")):
        with as_floats(folder) as same:
            assert same == folder


def test_certify_says_before_the_work_what_the_verdict_cannot_be(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    settings = {"quant_method": "awq", "version": "gemv"}
    folder = q.write(tmp_path / "model", q.qwen(q.awq), q.qwen_config(settings))
    assert main(["certify", str(folder), str(folder)]) in (1, 3)
    text = capsys.readouterr().err
    assert text.startswith("the logit check will not run: transformers cannot load awq weights as floats.")
    assert "NOT CERTIFIED" in text
    main(["certify", str(folder), str(folder), "--no-logits"])
    assert "will not run" not in capsys.readouterr().err
