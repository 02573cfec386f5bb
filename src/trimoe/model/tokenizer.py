"""Loads the tokenizer of a checkpoint directory, or says which file is missing.

transformers makes an empty tokenizer from a directory that has a configuration and no vocabulary; every text is then
empty, and the error comes much later and about something else.
"""

from pathlib import Path
from typing import Any

from trimoe.errors import CheckpointError, MissingPrerequisite

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model*",
    "*.tiktoken",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "*sentencepiece*.model",
    "tokenization_*.py",
)


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer, with transformers. Raises `CheckpointError` without its files or if they cannot be used."""
    _require_vocabulary(directory)
    try:
        from transformers import AutoTokenizer
    except ImportError as exc:
        raise MissingPrerequisite(
            "the tokenizer needs transformers", actual=str(exc), remedy="pip install 'trimoe[torch]'"
        ) from exc
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        words = len(tokenizer)
    except Exception as exc:  # tokenizer libraries raise anything, Rust's panics through plain Exception
        raise CheckpointError(
            f"{directory} has no usable tokenizer",
            expected="the tokenizer files of this model's revision",
            actual=f"{type(exc).__name__}: {str(exc)[:200]}",
            remedy="download the tokenizer files again, into this directory",
        ) from exc
    if not words:
        raise CheckpointError(
            f"the tokenizer in {directory} knows no tokens",
            expected="the tokenizer files of this model's revision",
            remedy="download the tokenizer files again, into this directory",
        )
    return tokenizer


def _require_vocabulary(directory: Path) -> None:
    if any(file.is_file() for pattern in _VOCABULARIES for file in directory.glob(pattern)):
        return
    raise CheckpointError(
        f"{directory} has no tokenizer",
        expected="tokenizer.json, tokenizer.model or the vocabulary in another format",
        actual="none of them",
        remedy="copy the tokenizer files of the original model into this directory",
    )
