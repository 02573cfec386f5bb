"""Every family that llama.cpp's converter takes: cutting and converting commute, and the certificate is proven."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import families
from trimoe.calibrate.engine import calibrate
from trimoe.certify.certify import certify
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.gguf.file import open_gguf
from trimoe.model.gguf.model import open_gguf_model
from trimoe.model.safetensors import read_bytes

CONVERT = Path(__file__).parents[1] / "helpers" / "convert_unknown.py"
NAMES = (
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "qwen2_moe",
    "olmoe",
    "mixtral",
    "gpt_oss",
    "gpt_oss-mxfp4",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "granitemoe",
)


def as_published(found: Any) -> Any:
    """What llama.cpp wants exactly as in the published models, where the random checkpoints differ."""
    if found.name == "qwen3_moe":  # no dense layers
        return replace(found, settings=found.settings | {"mlp_only_layers": []})
    if found.name == "olmoe":  # as many key heads as query heads
        return replace(found, settings=found.settings | {"num_key_value_heads": 2})
    if found.name.startswith("gpt_oss"):  # llama.cpp's limit is a constant, and scales must follow their blocks
        return replace(found, shards=1, settings=found.settings | {"swiglu_limit": 7.0})
    if found.name == "deepseek_v3":  # the converter reads a key of the published files that transformers does not write

        def scored(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
            found.publish(tensors, settings)
            settings["scoring_func"] = "sigmoid"

        return replace(found, publish=scored)
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
def test_every_family_is_cut_exactly(made: Path, llamacpp: LlamaCpp, tmp_path: Path) -> None:
    """One test over all: two workers would otherwise both make and convert every model."""
    wrong = {name: found for name in NAMES if (found := defects(made / name, tmp_path / f"{name}.gguf", llamacpp))}
    assert not wrong


@pytest.mark.slow
def test_statistics_equal_the_checkpoints(made: Path, tmp_path: Path) -> None:
    """Weights, scales, biases and corrections mean the same in llama.cpp's graph and in transformers."""
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"{i} apples and {i * 7} pears cost {i * 31} cents." for i in range(40))
    )
    work = tmp_path / "work.yaml"
    work.write_text("name: w\nwindow: 64\nclasses:\n  generic_text: [{kind: text, path: text.txt}]\n")
    wrong = {}
    for name in sorted(set(NAMES) - {"gpt_oss-mxfp4"}):  # the checkpoint would have to be calibrated quantized
        first = calibrate(
            made / name / "checkpoint", work, tmp_path / f"{name}.one", dtype="float32", neurons=True, recon=0
        )
        second = calibrate(made / name / "whole.gguf", work, tmp_path / f"{name}.two", neurons=True, recon=0)
        fields = [field for field in first.fields if "/" not in field]
        off = {field: _off(first.fields[field], second.fields[field]) for field in fields}
        off |= {field: _off(first.wide[field], second.wide[field]) for field in first.wide}
        if first.metadata["set"] != second.metadata["set"] or max(off.values()) > 2e-3:
            wrong[name] = {field: round(value, 5) for field, value in off.items() if value > 2e-3}
    assert not wrong


def _off(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one - two).sum() / np.abs(one).sum())


def defects(family: Path, out: Path, llamacpp: LlamaCpp) -> list[str]:
    """What is not as it should be about cutting whole.gguf of a family."""
    whole, pruned, drop_map = family / "whole.gguf", family / "pruned.gguf", DropMap.load(family / "map.json")
    prune(whole, drop_map, out)
    cut, want = open_gguf(out).index, open_gguf(pruned).index
    found = [f"{name} is missing or extra" for name in cut.keys() ^ want.keys()]
    for name in cut.keys() & want.keys():
        ours, theirs = cut[name], want[name]
        if (ours.dtype, ours.shape, read_bytes(ours)) != (theirs.dtype, theirs.shape, read_bytes(theirs)):
            found.append(f"{name} is not what converting the cut checkpoint gives")
    certificate = certify(whole, out, map=drop_map, reference=pruned)
    if (certificate.status, certificate.max_logit_difference) != ("proven", 0):
        found += [f"{check.name}: {check.detail} {check.findings}" for check in certificate.checks]
    inferred = infer_map(whole, out)
    layers = open_gguf_model(whole).moe_layers
    if not inferred.exact or inferred.map is None or set(inferred.map.drop) != set(layers):
        found.append(f"infer-map: {inferred.problems} {inferred.changes}")
    elif {layer: inferred.map.drop[layer] for layer in drop_map.drop} != drop_map.drop:
        found.append("infer-map finds another map")
    return found
