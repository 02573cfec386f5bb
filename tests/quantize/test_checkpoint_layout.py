"""A checkpoint planned from its configuration against what transformers makes of it, and against what is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.safetensors import header_bytes, read_bytes
from trimoe.model.tiny import path as bundled
from trimoe.quantize.nvfp4.quantize import quantize_nvfp4
from trimoe.quantize.nvfp4.sizes import predict
from trimoe.quantize.plan.checkpoint_layout import checkpoint_of_config
from trimoe.quantize.plan.checkpoint_size import checkpoint_bytes
from trimoe.quantize.plan.shipped import shipped_config
from trimoe.quantize.types.vision import vision_of


def shipped() -> dict[str, object]:
    config = shipped_config("gemma-4-26B-A4B")
    assert config is not None
    return config


def weights_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model without the copy of its embeddings that it holds as an output matrix."""
    folder = tmp_path_factory.mktemp("tied") / "m"
    shutil.copytree(bundled(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    index = {n: info for n, info in open_checkpoint(bundled()).index.items() if n != "lm_head.weight"}
    head = header_bytes({name: (info.dtype, info.shape) for name, info in index.items()}, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(head + b"".join(read_bytes(info) for info in index.values()))
    return folder


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("keep", [None, 11])
def test_nvfp4_from_the_configuration_alone(tied: Path, tmp_path: Path, layout: str, keep: int | None) -> None:
    config = read_json(tied / "config.json", "config")
    size = predict(checkpoint_of_config("m", config), layout, keep=keep)
    source = tied
    if keep is not None:
        drop = {layer: tuple(range(layer, layer + 32 - keep)) for layer in range(4)}
        prune(tied, DropMap(drop, 32), tmp_path / "cut")
        source = tmp_path / "cut"
        assert checkpoint_bytes(checkpoint_of_config("m", config), keep) == weights_of(source)
    quantize_nvfp4(source, tmp_path / "o", layout=layout)
    assert weights_of(tmp_path / "o") == size.file_bytes


def test_a_checkpoint_with_an_output_matrix() -> None:
    config = read_json(bundled() / "config.json", "config")
    planned, real = checkpoint_of_config("m", config, output=True), open_checkpoint(bundled())
    assert {n: i.shape for n, i in planned.index.items()} == {n: i.shape for n, i in real.index.items()}
    assert predict(planned, keep=9) == predict(real, keep=9)
    assert "lm_head.weight" in checkpoint_of_config("m", config | {"tie_word_embeddings": False}).index


def test_the_published_checkpoint() -> None:
    """model.safetensors.index.json of google/gemma-4-26B-A4B-it: total_size 51611872412, 1013 tensors."""
    found = checkpoint_of_config("gemma-4-26B-A4B", shipped())
    assert found.nbytes == 51_611_872_412
    assert len(found.index) == 1013
    # huggingface.co/rnagabh/gemma4-vision-encoder, config.json: _verified_total_params of the tower alone.
    tower = [info for name, info in found.index.items() if ".vision_tower." in name]
    assert sum(info.nbytes for info in tower) == 2 * 569_550_384
    projection = found.index["model.embed_vision.embedding_projection.weight"]
    assert vision_of("x", shipped()).weights == 569_550_384 + int(np.prod(projection.shape))


def test_names_and_shapes_of_transformers() -> None:
    """Weights on the meta device: no memory, the real widths."""
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    config = shipped()
    made = Gemma4Config(text_config=config["text_config"], vision_config=config["_vision_config"], audio_config=None)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = Gemma4ForConditionalGeneration(made)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert {n: i.shape for n, i in checkpoint_of_config("m", config).index.items()} == theirs


def test_what_has_no_layout() -> None:
    config = shipped()
    vision = config.pop("_vision_config")
    assert isinstance(vision, dict)
    assert not any("vision" in name for name in checkpoint_of_config("m", config).index)
    for tower in ({**vision, "use_clipped_linears": True}, {**vision, "model_type": "siglip"}):
        with pytest.raises(CheckpointError, match="no layout for the vision tower"):
            checkpoint_of_config("m", {**config, "vision_config": tower})
    with pytest.raises(CheckpointError, match="audio tower"):
        checkpoint_of_config("m", {**config, "audio_config": {"hidden_size": 1}})
    with pytest.raises(CheckpointError, match=r"(?s)incomplete.*head_dim"):
        checkpoint_of_config("m", {**config, "vision_config": {k: v for k, v in vision.items() if k != "head_dim"}})
    with pytest.raises(CheckpointError, match="no GGUF layout for model_type mixtral"):
        checkpoint_of_config("m", json.loads('{"model_type": "mixtral"}'))
