"""Trains the tokenizer of the bundled model: BPE with byte fallback, in the format of Gemma 4's tokenizer.json.

llama.cpp splits Gemma 4 text only at newlines and merges within whole lines, so no merge may depend on a pre-tokenizer.
Merges are learned on words with digits and punctuation split off. So no merge crosses a word or contains a digit, and
transformers and llama.cpp give the same tokens.
"""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"]
SPACE = "\u2581"


def learn(texts: Iterable[str], merges: int = 280) -> Tokenizer:
    """A tokenizer of special, byte and printable ASCII tokens plus `merges` merges learned from `texts`."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    word = Regex(f"{SPACE}?[A-Za-z]+|[^A-Za-z]")
    learner.pre_tokenizer = pre_tokenizers.Split(word, "isolated")
    alphabet = [SPACE, "\n", *(chr(c) for c in range(33, 127))]
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    pairs = [tuple(pair) for pair in learned]
    tokens = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), *alphabet, *("".join(p) for p in pairs)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(SPECIALS)
    return made
