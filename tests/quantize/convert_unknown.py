"""Runs llama.cpp's own converter on models whose tokenizers it does not know by hash, several in one process.

    python convert_unknown.py SCRIPT OUTTYPE MODEL OUT [MODEL OUT ...]

Only the vocabulary is replaced (bytes, one merge); the conversion of tensors and metadata is the script's.
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
    self._set_vocab_gpt2()
    self.gguf_writer.add_token_merges(["a b"])


def get_model_class(*arguments: Any, **options: Any) -> Any:
    found = known(*arguments, **options)
    if issubclass(found, TextModel):
        found.set_vocab = set_vocab
    return found


TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
conversion.get_model_class = get_model_class
for model, out in zip(pairs[::2], pairs[1::2], strict=True):
    sys.argv = [script, model, "--outtype", outtype, "--outfile", out]
    runpy.run_path(script, run_name="__main__")
