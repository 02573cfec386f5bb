"""A small random Gemma 4 that generates nonsense fast and stops often: one token in five ends a reply."""

import string
from pathlib import Path

import pytest

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|turn>{{ m['content'] }}<turn|>{% endfor %}<|turn>"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory. Its sliding window is shorter than the prompts."""
    return write_model(tmp_path_factory.mktemp("models") / "random", seed=0)


def write_model(folder: Path, seed: int) -> Path:
    """Random weights with enough variance that replies differ between prompts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    config = Gemma4TextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
        max_position_embeddings=512,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=16,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=len(vocabulary),
        tie_word_embeddings=False,
        num_kv_shared_layers=0,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    model = Gemma4ForCausalLM(config)
    model.generation_config.eos_token_id = [1, *range(6, len(vocabulary), 5)]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
