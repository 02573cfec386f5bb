"""The whole export of Model Optimizer itself, run now and compared tensor by tensor (see modelopt_env.py)."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.modelopt_env import EXPORT, modelopt_python
from trimoe.model.safetensors import read_bytes
from trimoe.model.shards import read_index
from trimoe.model.tiny import path as bundled
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter that has Model Optimizer."""
    found = modelopt_python()
    if isinstance(found, str):
        pytest.skip(found)
    return str(found)


def test_the_bundled_model_is_exported_to_the_same_bytes(python: str, tmp_path: Path) -> None:
    """Codes, block scales, scales, everything that is not quantized, and what loaders are told."""
    subprocess.run(
        [python, str(EXPORT), "export", str(bundled()), str(tmp_path / "theirs")], check=True, capture_output=True
    )
    quantize_nvfp4(bundled(), tmp_path / "ours")
    theirs, ours = read_index(tmp_path / "theirs"), read_index(tmp_path / "ours")
    assert ours.keys() - theirs.keys() == {"lm_head.weight"}  # tied to the embedding: they leave the copy out
    assert not theirs.keys() - ours.keys()
    for name, info in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (info.dtype, info.shape), name
        assert read_bytes(ours[name]) == read_bytes(info), name
    assert (tmp_path / "ours/hf_quant_config.json").read_text().strip() == (
        tmp_path / "theirs/hf_quant_config.json"
    ).read_text().strip()
    configs = [json.loads((tmp_path / which / "config.json").read_text()) for which in ("ours", "theirs")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_the_recorded_cases_are_what_it_makes(python: str, tmp_path: Path) -> None:
    """nvfp4_golden.npz can be made again."""
    subprocess.run([python, str(EXPORT), "golden", str(tmp_path / "again.npz")], check=True, capture_output=True)
    again, kept = np.load(tmp_path / "again.npz"), np.load(DATA / "nvfp4_golden.npz")
    assert set(again.files) == set(kept.files)
    assert all(np.array_equal(again[name], kept[name]) for name in kept.files)
