"""Opens a model by what a user calls it: a directory, a GGUF file, or a hub id that was downloaded before.

Invariants: nothing is downloaded; a path that exists goes before a hub id of the same name.
"""

import os
import re
from pathlib import Path

from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.gguf.file import find_gguf
from trimoe.model.gguf.model import GgufModel, open_gguf_model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def open_model(model: str | os.PathLike[str]) -> Checkpoint | GgufModel:
    """Open and validate a Mixture-of-Experts model without reading its weights.

    `model` is a checkpoint directory (config.json and safetensors files), a .gguf file (for a split model, its first
    part) or a directory with one, or the hub id ORG/NAME of a model in the local Hugging Face cache.

    Raises `CheckpointError` if there is no such model, or if it is damaged, dense or of an unknown family.

    >>> model = trimoe.open(tiny.path())
    >>> model
    Checkpoint('checkpoint', gemma4, 4 layers, 32 experts, top-4, 9.2 MB)
    >>> model.num_layers, model.num_experts, model.top_k
    (4, 32, 4)
    """
    path = find_model(model)
    gguf = find_gguf(path)
    return open_checkpoint(path) if gguf is None else open_gguf_model(gguf)


def find_model(model: str | os.PathLike[str]) -> Path:
    """The path that `model` names; the snapshot in the local cache for a hub id. Raises `CheckpointError`."""
    path = Path(model)
    if path.exists() or not _HUB_ID.fullmatch(str(model)):
        return path
    cache = hub_cache()
    folder = cache / f"models--{str(model).replace('/', '--')}"
    revision = folder / "refs" / "main"
    snapshot = folder / "snapshots" / (revision.read_text().strip() if revision.is_file() else "main")
    if snapshot.is_dir():
        return snapshot
    raise CheckpointError(
        f"there is no model {model}",
        expected="a checkpoint directory, a .gguf file, or the id of a downloaded model",
        actual=f"neither {path.absolute()} nor {folder} exists",
        remedy=f"check the path, or download the model: hf download {model}",
    )


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
