"""The vision tower's size against the file that llama.cpp's converter writes for a random model."""

import subprocess
import sys
from pathlib import Path

import pytest

from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.gguf.file import open_gguf
from trimoe.quantize.plan.shipped import shipped_config
from trimoe.quantize.types.vision import vision_of


@pytest.mark.slow
def test_the_mmproj_file_of_the_converter(llamacpp: LlamaCpp, tmp_path: Path) -> None:
    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "position_embedding_size": 50,
        "patch_size": 16,
    }
    text = {
        "vocab_size": 100,
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size_per_layer_input": 0,
    }
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None)  # type: ignore[arg-type]
    Gemma4ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    out = tmp_path / "mmproj.gguf"
    command = [
        sys.executable,
        str(llamacpp.converter),
        str(tmp_path / "m"),
        "--mmproj",
        "--outtype",
        "bf16",
        "--outfile",
        str(out),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    found = vision_of("m", read_json(tmp_path / "m" / "config.json", "config"))
    made = open_gguf(next(tmp_path.glob("*mmproj*.gguf")))
    assert sum(info.nbytes for info in made.index.values()) == found.nbytes
    assert len(made.index) == found.tensors
    assert abs(made.path.stat().st_size - found.file_bytes) < 2000


def test_the_shipped_tower() -> None:
    """Dimensions as in the published mmproj file; its weights are counted in test_checkpoint_layout."""
    config = shipped_config("gemma-4-26B-A4B")
    assert config is not None
    found = vision_of("x", config)
    assert found.weights == 572_794_416
    assert 1.19e9 < found.file_bytes < 1.20e9


def test_what_is_no_tower() -> None:
    with pytest.raises(CheckpointError, match="no vision tower"):
        vision_of("x", {})
    with pytest.raises(CheckpointError, match="no layout for the vision tower siglip"):
        vision_of("x", {"vision_config": {"model_type": "siglip"}})
    with pytest.raises(CheckpointError, match=r"(?s)incomplete.*hidden_size"):
        vision_of("x", {"vision_config": {"model_type": "gemma4_vision"}})
