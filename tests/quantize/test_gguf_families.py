"""Every family that llama.cpp's converter takes: cutting and converting commute, and the certificate is proven."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest

from trimoe.choose.dropmap import DropMap
from trimoe.cut.certify_gguf import certify_gguf
from trimoe.cut.gguf import prune_gguf
from trimoe.cut.infer_gguf import infer_map_gguf
from trimoe.cut.prune import prune
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.gguf import open_gguf
from trimoe.model.gguf_model import open_gguf_model
from trimoe.model.safetensors import read_bytes
from trimoe.quantize.llamacpp import LlamaCpp
from trimoe.quantize.masked import MaskedLogits

CONVERT = Path(__file__).with_name("convert_unknown.py")
NAMES = (
    "qwen3_moe", "qwen3_next", "qwen3_5_moe", "qwen2_moe", "olmoe", "mixtral", "gpt_oss", "gpt_oss-mxfp4",
    "deepseek_v2", "deepseek_v3", "glm4_moe", "granitemoe",
)  # fmt: skip


def as_published(found: Any) -> Any:
    """What llama.cpp wants exactly as in the published models, where the random checkpoints differ."""
    if found.name == "qwen3_moe":  # no dense layers
        return replace(found, settings=found.settings | {"mlp_only_layers": []})
    if found.name == "olmoe":  # as many key heads as query heads
        return replace(found, settings=found.settings | {"num_key_value_heads": 2})
    if found.name == "gpt_oss-mxfp4":  # the converter relies on scales following their blocks
        return replace(found, shards=1)
    if found.name not in ("qwen3_next", "qwen3_5_moe"):
        return found
    settings = found.settings
    if found.name == "qwen3_5_moe":  # position sections that fit into the small heads
        rope = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [1, 1, 0],
        }
        settings = settings | {"text_config": settings["text_config"] | {"rope_parameters": rope}}

    def publish(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
        import torch

        found.publish(tensors, settings)
        norm = tensors.pop("mtp.enorm.weight")
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            tensors[f"mtp.{name}.weight"] = norm.clone()
        tensors["mtp.fc.weight"] = torch.randn(len(norm), 2 * len(norm))

    return replace(found, publish=publish, settings=settings)


@pytest.fixture(scope="module")
def made(llamacpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME/whole.gguf, NAME/pruned.gguf and NAME/map.json of every family, converted in one process."""
    folder = tmp_path_factory.mktemp("families")
    pairs: list[str] = []
    draw = random.Random(4)
    for found in families.MADE:
        if found.name not in NAMES:
            continue
        place = folder / found.name
        families.write(as_published(found), place / "checkpoint")
        model = open_checkpoint(place / "checkpoint")
        drop = {i: tuple(sorted(draw.sample(range(model.num_experts), 2))) for i in model.moe_layers}
        drop_map = DropMap(drop, model.num_experts)
        drop_map.save(place / "map.json")
        prune(model.path, drop_map, place / "cut")
        pairs += [str(model.path), str(place / "whole.gguf"), str(place / "cut"), str(place / "pruned.gguf")]
    command = [sys.executable, str(CONVERT), str(llamacpp.converter), "f32", *pairs]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_cut_exactly(name: str, made: Path, llamacpp: LlamaCpp, tmp_path: Path) -> None:
    whole, drop_map = made / name / "whole.gguf", DropMap.load(made / name / "map.json")
    prune_gguf(whole, drop_map, tmp_path / "cut.gguf")
    cut, want = open_gguf(tmp_path / "cut.gguf"), open_gguf(made / name / "pruned.gguf")
    assert cut.index.keys() == want.index.keys()  # the order follows the shards of the checkpoint
    for tensor, info in want.index.items():
        assert (cut.index[tensor].dtype, cut.index[tensor].shape) == (info.dtype, info.shape), tensor
        assert read_bytes(cut.index[tensor]) == read_bytes(info), tensor
    certificate = certify_gguf(
        whole, tmp_path / "cut.gguf", map=drop_map, reference=made / name / "pruned.gguf", run=MaskedLogits(llamacpp)
    )
    assert certificate.status == "proven", certificate.checks
    assert certificate.max_logit_difference == 0
    found = infer_map_gguf(whole, tmp_path / "cut.gguf")
    assert found.exact
    assert found.map is not None
    model = open_gguf_model(whole)
    assert {layer: found.map.drop[layer] for layer in drop_map.drop} == drop_map.drop
    assert set(found.map.drop) == set(model.moe_layers)
