"""A tokenizer for random models: 256 bytes and three special tokens."""

from pathlib import Path

VOCABULARY = 259
TEMPLATE = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{{- '<turn>' + m['role'] + '\\n' + m['content'] + '</turn>\\n' -}}{%- endfor -%}"
)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 259 tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
