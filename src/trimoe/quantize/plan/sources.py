"""Models that a plan can start from: a GGUF file, a checkpoint directory, a config.json, or a shipped name.

Reads headers and configurations only. A checkpoint that is not complete on disk is planned from its configuration.
"""

from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.gguf.file import find_gguf, open_gguf
from trimoe.model.open import find_model
from trimoe.model.shards import read_index
from trimoe.quantize.plan.checkpoint_layout import checkpoint_of_config
from trimoe.quantize.plan.shipped import shipped_config, shipped_configs
from trimoe.quantize.types.blueprint import Blueprint, blueprint_of_gguf
from trimoe.quantize.types.config_blueprint import blueprint_of_config


def load_blueprint(model: str) -> Blueprint:
    """The GGUF blueprint of a model. Raises `BadInput`, and `CheckpointError` for a family without a GGUF layout."""
    path = local_path(model)
    if path is None:
        return blueprint_of_config(model, load_config(model))
    if (file := find_gguf(path)) is not None:
        return blueprint_of_gguf(open_gguf(file))
    config = _read_config(path / "config.json" if path.is_dir() else path)
    if not path.is_dir():
        return blueprint_of_config(model, config)
    output = any(name.endswith("lm_head.weight") for name in read_index(path))
    return blueprint_of_config(model, config, path / "tokenizer.json", output=output)


def load_config(model: str) -> dict[str, Any]:
    """The configuration of a checkpoint directory, config.json or shipped name. Raises `BadInput`."""
    path = local_path(model)
    if path is None:
        config = shipped_config(model)
        if config is None:
            raise BadInput(
                f"{model} is neither a path nor a model known by name",
                expected=", ".join(shipped_configs()),
                actual=model,
                remedy="give a GGUF file, a checkpoint directory or a config.json",
            )
        return config
    source = path / "config.json" if path.is_dir() else path
    if source.suffix != ".json" or not source.exists():
        raise BadInput(
            f"{model} has no configuration",
            expected="config.json",
            actual="none",
            remedy="give the checkpoint or its config.json; an mmproj file has its own size",
        )
    return _read_config(source)


def open_headers(model: str) -> tuple[Checkpoint, bool] | None:
    """(headers, whether they were read from files) of a checkpoint; None for a GGUF file.

    Headers that are not read follow from the configuration. Raises what is wrong with them.
    """
    path = local_path(model)
    if path is not None and find_gguf(path) is not None:
        return None
    if path is not None and path.is_dir():
        return open_checkpoint(path), True
    return checkpoint_of_config(model, load_config(model)), False


def local_path(model: str) -> Path | None:
    """The path of a model on disk or in the local hub cache; None for a name."""
    path = Path(model)
    if path.exists() or shipped_config(model) is not None:
        return path if path.exists() else None
    try:
        found = find_model(model)
    except CheckpointError:
        return None
    return found if found.exists() else None


def _read_config(source: Path) -> dict[str, Any]:
    config = read_json(source, "model configuration")
    if not isinstance(config, dict):
        raise BadInput(
            f"{source} is not a JSON object",
            expected="a Hugging Face config.json",
            actual=type(config).__name__,
            remedy="give the model's config.json",
        )
    return config
