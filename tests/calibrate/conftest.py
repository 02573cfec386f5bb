"""Random checkpoints of the Gemma 4 architecture, small enough for the naive oracle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def save_tokenizer(path: Path, template: str | None = TEMPLATE) -> int:
    """A character tokenizer with turn markers; returns the vocabulary's size."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>", "\n", *(chr(c) for c in range(32, 127))]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.chat_template = template
    fast.save_pretrained(path)
    return len(tokens)


@pytest.fixture
def make_tokenizer(tmp_path: Path) -> Callable[..., Any]:
    """Loads such a tokenizer with a template of the test's own."""
    from transformers import AutoTokenizer

    made: list[Path] = []

    def make(template: str | None = TEMPLATE) -> Any:
        made.append(tmp_path / f"tokenizer-{len(made)}")
        save_tokenizer(made[-1], template)
        return AutoTokenizer.from_pretrained(made[-1])

    return make


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a random float32 Gemma 4 MoE (3 layers, 8 experts, top-2) with every scale away from 1."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    def make(seed: int = 5, template: str | None = TEMPLATE, **changes: Any) -> Path:
        path = tmp_path_factory.mktemp("random") / "model"
        vocabulary = save_tokenizer(path, template)
        settings: dict[str, Any] = {
            "vocab_size": vocabulary,
            "vocab_size_per_layer_input": vocabulary,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "num_experts": 8,
            "top_k_experts": 2,
            "intermediate_size": 32,
            "moe_intermediate_size": 16,
            "enable_moe_block": True,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 16,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "use_bidirectional_attention": None,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        } | changes
        torch.manual_seed(seed)
        model = Gemma4ForCausalLM(Gemma4TextConfig(**settings)).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                around_one = "scale" in name or "norm" in name
                parameter.copy_(torch.rand_like(parameter) + 0.5 if around_one else torch.randn_like(parameter) * 0.2)
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def random_model(make_model: Callable[..., Path]) -> Path:
    """One such checkpoint."""
    return make_model()


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """Documents of 3 to 150 tokens (windows of 40), two classes, one weighted and one measured in part."""
    rows = [{"q": "2+2?" * n, "a": f"It is {n}."} for n in range(1, 9)]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    texts = ["abc", "The quick brown fox jumps. " * 5, "x = [i for i in range(10)]"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    path = tmp_path / "set.yaml"
    path.write_text(
        """
name: small
window: 40
classes:
  generic_chat:
    - {kind: jsonl, path: chats.jsonl, fields: {prompt: q, completion: a}}
  targeted_text:
    - {kind: jsonl, path: texts.jsonl, weight: 3}
    - {kind: jsonl, path: chats.jsonl, fields: {prompt: q, completion: a}, count_before: "<end>", limit: 4}
"""
    )
    return path


@pytest.fixture
def long_set(tmp_path: Path) -> Path:
    """Some ten thousand tokens in two classes: enough for a layer to take a noticeable time."""
    for name in ("a", "b"):
        rows = [{"text": f"{name} {i}: " + "the quick brown fox jumps over the lazy dog " * 4} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    path = tmp_path / "long.yaml"
    sources = "\n".join(f"  {name}: [{{kind: jsonl, path: {name}.jsonl}}]" for name in ("a", "b"))
    path.write_text(f"name: long\nwindow: 64\nclasses:\n{sources}\n")
    return path
