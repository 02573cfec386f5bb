"""Preflight checks that need no server: tokenizer, access to gated data, disk space."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimoe.bench.spec import BenchSpec
from trimoe.errors import Refused
from trimoe.model.gguf.file import is_gguf

Status = Literal["ok", "unverified", "does not apply"]
LEAST_FREE = 512 << 20  # bytes on the disk of the run log
REPLY_BYTES = 8  # bytes that a stored token may take, raw reply included
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. A failed check raises `Refused`, so it has no status."""

    name: str
    status: Status
    detail: str


def check_tokenizer(tokenizer: Path | None) -> Finding:
    """Refuses a tokenizer path without tokenizer files."""
    if tokenizer is None:
        return Finding("tokenizer", "does not apply", "tokens are counted by the server")
    remedy = "give the directory of the original model, which has tokenizer.json"
    if tokenizer.is_file() and (is_gguf(tokenizer) or tokenizer.suffix == ".gguf"):
        raise Refused(
            "a GGUF file was given as the tokenizer",
            expected="a directory with tokenizer files",
            actual=str(tokenizer),
            remedy=remedy,
        )
    if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise Refused(
            f"{tokenizer} has no tokenizer",
            expected=" or ".join(TOKENIZER_FILES),
            actual="none of them",
            remedy=remedy,
        )
    return Finding("tokenizer", "ok", str(tokenizer))


def check_gated_data(spec: BenchSpec | None, data: Path | None) -> Finding:
    """Refuses a gated data set without access. (In the reference such runs scored zero.)"""
    for dataset in spec.dataset if spec else ():
        local = data is not None and (data / dataset.local).exists()
        if dataset.gated and not local and not _hub_token():
            raise Refused(
                f"{dataset.hub} is gated",
                expected="an access token for the hub, or a local copy",
                actual=f"HF_TOKEN is not set, and {dataset.local} is not below {data or '--data'}",
                remedy=f"accept its terms (huggingface.co/datasets/{dataset.hub}) and set HF_TOKEN, or give --data DIR",
            )
    gated = spec is not None and any(dataset.gated for dataset in spec.dataset)
    return Finding(
        "gated data", "ok" if gated else "does not apply", "token or local copy" if gated else "none is gated"
    )


def _hub_token() -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    return bool(os.environ.get("HF_TOKEN")) or file.is_file()


def check_disk(log_path: Path | None, rows: int, max_new_tokens: int) -> Finding:
    """Refuses a disk without space for `rows` replies of `max_new_tokens` tokens."""
    if log_path is None:
        return Finding("disk", "does not apply", "no run log")
    folder = next(parent for parent in log_path.absolute().parents if parent.is_dir())
    free, needed = shutil.disk_usage(folder).free, LEAST_FREE + rows * max_new_tokens * REPLY_BYTES
    if free < needed:
        raise Refused(
            "not enough disk space for the run log",
            expected=f"{needed >> 20} MiB free in {folder}",
            actual=f"{free >> 20} MiB",
            remedy="free some space, or put --log on another disk",
        )
    return Finding("disk", "ok", f"{free >> 20} MiB free, up to {needed >> 20} MiB needed")
