"""Cuts of checkpoints that a real quantizer wrote: its tensors are those that the data files name, and what
transformers can load as floats is proven by its logits too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.certify_models import edit_json, flip_byte
from helpers.families import EXPERTS, MADE, Made
from trimoe.certify import loading
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.quant import all_quants
from trimoe.model.shards import read_index

Checkpoints = Callable[[Made], Path]
QWEN = next(made for made in MADE if made.name == "qwen3_moe")
DROP = DropMap(QWEN.drop, EXPERTS)
FORMATS = {"int4": "pack-quantized", "fp8": "float-quantized", "nvfp4": "nvfp4-pack-quantized"}


def weights_of(kind: str) -> Any:
    """Settings of compressed-tensors for the experts' weights."""
    from compressed_tensors.quantization import QuantizationArgs

    if kind == "int4":
        return QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=16, symmetric=True)
    if kind == "fp8":
        return QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
    import torch

    return QuantizationArgs(
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        symmetric=True,
        scale_dtype=torch.float8_e4m3fn,
        zp_dtype=torch.float8_e4m3fn,
    )


def scales_of(kind: str, weight: Any) -> dict[str, Any]:
    """The largest values, as a calibration without data takes them."""
    import torch

    if kind == "fp8":
        return {"weight_scale": weight.abs().amax(1, keepdim=True) / 448}
    groups = weight.reshape(len(weight), -1, 16).abs().amax(2)
    if kind == "int4":
        return {"weight_scale": groups / 7}
    whole = 448 * 6 / weight.abs().amax()
    scale = (whole * groups / 6).to(torch.float8_e4m3fn).float()
    return {"weight_global_scale": whole.reshape(1), "weight_scale": scale}


def compress(base: Path, kind: str) -> None:
    """Replace the experts' matrices by what compressed-tensors makes of them, and say so in config.json."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file, save_file

    scheme = QuantizationScheme(targets=["re:.*mlp.experts.*_proj$"], weights=weights_of(kind), format=FORMATS[kind])
    compressor = BaseCompressor.get_value_from_registry(FORMATS[kind])
    weight_map = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors = load_file(file)
        for name in [n for n in tensors if ".experts." in n]:
            weight = tensors.pop(name)
            parts = compressor.compress({"weight": weight, **scales_of(kind, weight)}, scheme)
            for part, tensor in parts.items():
                tensors[name.removesuffix("weight") + part] = tensor.contiguous()
        save_file(tensors, file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    settings = {
        "quant_method": "compressed-tensors",
        "format": FORMATS[kind],
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme.model_dump(mode="json", exclude_none=True)},
        "ignore": ["lm_head", "model.layers.1.mlp.gate"],
    }
    edit_json(base / "config.json", lambda c: c.update(quantization_config=settings))


@pytest.fixture
def compressed(family_checkpoint: Checkpoints, tmp_path: Path) -> Callable[[str], Path]:
    """A random Qwen3-MoE with quantized experts."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is in the extra 'dev'")

    def make(kind: str) -> Path:
        base = Path(shutil.copytree(family_checkpoint(QWEN), tmp_path / "base"))
        compress(base, kind)
        return base

    return make


@pytest.mark.parametrize("kind", FORMATS)
def test_what_compressed_tensors_writes(kind: str, compressed: Callable[[str], Path], tmp_path: Path) -> None:
    base = compressed(kind)
    rules = next(q for q in all_quants() if q.name == "compressed-tensors").module
    named = {suffix for rule in rules for suffix in rule.suffixes}
    written = {name.rpartition("_proj.")[2] for name in read_index(base) if ".experts." in name}
    assert written <= named
    assert any(set(rule.required) | {rule.main} <= written for rule in rules)

    prune(base, DROP, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").num_experts == EXPERTS - 3
    assert infer_map(base, tmp_path / "out").exact
    certificate = certify(base, tmp_path / "out", map=DROP)
    findings = [str(f) for c in certificate.checks for f in c.findings]
    details = {c.name: c.detail for c in certificate.checks}
    assert findings == [], findings
    assert certificate.status == "proven", details
    assert certificate.check("logits").numbers["masked_share"] > 0.05


@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_scales_of_the_wrong_expert_show_in_the_logits(
    kind: str, compressed: Callable[[str], Path], tmp_path: Path
) -> None:
    """The second line of proof sees what the first one would miss if a family file forgot the scales."""
    base = compressed(kind)
    prune(base, DROP, tmp_path / "out")
    index = read_index(tmp_path / "out")
    one, two = (index[f"model.layers.1.mlp.experts.{e}.up_proj.weight_scale"] for e in (0, 1))
    content = {i.name: i.file.read_bytes()[i.start : i.end] for i in (one, two)}
    for target, source in ((one, two), (two, one)):
        with target.file.open("r+b") as file:
            file.seek(target.start)
            file.write(content[source.name])
    certificate = certify(base, tmp_path / "out", map=DROP, keep_going=True)
    assert certificate.check("logits").status == "failed"
    assert {f.tensor for f in certificate.check("cut").findings} == {one.name, two.name}


def test_blocks_of_fp8_are_proven(family_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """As DeepSeek publishes it; transformers turns it into floats where there is no GPU."""
    import torch
    from safetensors.torch import load_file, save_file

    pytest.importorskip("accelerate", reason="accelerate is in the extra 'dev'")
    base = Path(shutil.copytree(family_checkpoint(QWEN), tmp_path / "base"))
    weight_map = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors = load_file(file)
        for name in [n for n in tensors if ".experts." in n]:
            scale = tensors[name].abs().amax() / 448
            tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale.reshape(1, 1)
        save_file(tensors, file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    settings = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.gate", "self_attn"],
    }
    edit_json(base / "config.json", lambda c: c.update(quantization_config=settings))
    prune(base, DROP, tmp_path / "out")
    certificate = certify(base, tmp_path / "out", map=DROP)
    assert certificate.status == "proven", {c.name: (c.detail, c.findings) for c in certificate.checks}
    flip_byte(read_index(tmp_path / "out")["model.layers.2.mlp.experts.1.down_proj.weight_scale_inv"], 2, 0x40)
    certificate = certify(base, tmp_path / "out", map=DROP, keep_going=True)
    assert certificate.check("logits").status == "failed"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "modelopt"}, "transformers cannot load modelopt weights as floats"),
        ({"quant_method": "gptq"}, "transformers cannot load gptq weights as floats"),
        ({"quant_method": "something"}, "transformers cannot load something weights as floats"),
    ],
)
def test_the_certificate_says_what_was_not_checked(
    settings: dict, reason: str, family_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(family_checkpoint(QWEN), tmp_path / "base"))
    edit_json(base / "config.json", lambda c: c.update(quantization_config=settings))
    prune(base, DROP, tmp_path / "out")
    certificate = certify(base, tmp_path / "out", map=DROP)
    assert certificate.status == "incomplete"
    assert certificate.check("logits").detail == f"logits not checked: {reason}"


def test_no_quantizer_needs_to_be_installed(
    compressed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = compressed("fp8")
    prune(base, DROP, tmp_path / "out")
    real = loading.find_spec
    monkeypatch.setattr(loading, "find_spec", lambda n: None if n == "compressed_tensors" else real(n))
    assert certify(base, tmp_path / "out", map=DROP).proven
