"""The generator against transformers' own greedy generation; checkpoints that do not load exactly are refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from helpers import families
from trimoe.errors import CheckpointError
from trimoe.model.generate import Generator, load_model

torch = pytest.importorskip("torch")
STOPS = (5, 9, 17, 23, 40, 41, 42, 43, 44, 45, 46, 47)
MADE = {made.name: made for made in families.MADE}


def made_model(name: str, folder: Path) -> Path:
    return families.write(MADE[name], folder / name)


def library_tokens(model: Any, prompts: list[list[int]], count: int, stops: list[int], pad: int) -> list[list[int]]:
    """What `generate` of transformers chooses, up to and including the first stop token."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=pad)
    width = max(map(len, prompts))
    out = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=count,
    )
    rows = [row[width:].tolist() for row in out]
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), None) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Batches whose rows end at different steps, draft blocks and towers included."""
    generator = Generator(made_model(name, tmp_path), stops=STOPS)
    draw = random.Random(name)
    prompts = [[draw.randrange(3, 200) for _ in range(length)] for length in (5, 9, 14, 3, 9, 7)]
    found = generator.reply(prompts, 20)
    stops = sorted(int(i) for i in generator._stops)
    expected = library_tokens(generator._model, prompts, 20, stops, generator._pad)
    assert [list(reply.tokens) for reply in found] == expected
    assert [reply.finish_reason == "stop" for reply in found] == [tokens[-1] in stops for tokens in expected]


def test_a_tensor_that_is_not_part_of_the_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = made_model("olmoe", tmp_path)
    file = next(model.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(2, 2)
    save_file(tensors, file, metadata={"format": "pt"})
    index = model / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"]["model.layers.0.mlp.extra.weight"] = file.name
        index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="unexpected_keys"):
        load_model(model)


@pytest.mark.parametrize("name", ["deepseek_v3", "llama4-multimodal"])
def test_draft_blocks_and_towers_are_left_out(name: str, tmp_path: Path) -> None:
    assert load_model(made_model(name, tmp_path)) is not None
