"""Runs llama.cpp's own converter on models whose tokenizers it does not know by hash, several in one process.

    python convert_unknown.py SCRIPT OUTTYPE MODEL OUT [MODEL OUT ...]

Only the vocabulary is replaced; the conversion of tensors and metadata is the script's.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

script, outtype, *pairs = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))
sys.path.insert(1, str(Path(script).parent / "gguf-py"))

import conversion  # type: ignore[import-not-found]  # noqa: E402
from conversion.base import TextModel  # type: ignore[import-not-found]  # noqa: E402

known = conversion.get_model_class


def set_vocab(self: Any) -> None:
    """The tokens of byte_tokenizer.py: 256 bytes in GPT-2's spelling. A larger vocabulary is unused."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    unused = [f"<unused{i}>" for i in range(259, self.hparams["vocab_size"])]
    writer = self.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<pad>", "<eos>", "<bos>", *sorted(spelled.values()), *unused])
    writer.add_token_types([3] * 3 + [1] * 256 + [5] * len(unused))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_add_bos_token(False)


def get_model_class(*arguments: Any, **options: Any) -> Any:
    found = known(*arguments, **options)
    if issubclass(found, TextModel):
        found.set_vocab = set_vocab
    return found


conversion.get_model_class = get_model_class
for model, out in zip(pairs[::2], pairs[1::2], strict=True):
    sys.argv = [script, model, "--outtype", outtype, "--outfile", out]
    runpy.run_path(script, run_name="__main__")
