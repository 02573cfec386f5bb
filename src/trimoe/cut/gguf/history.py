"""The drop record of a GGUF model: which file holds it, and its content after a cut."""

from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.cut.history import make_record, read_record
from trimoe.errors import CheckpointError
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.model.files import METADATA
from trimoe.model.gguf.file import split_stem
from trimoe.model.gguf.model import GgufModel

KIND = "pruned GGUF"
"""The kind in the manifest of a pruned GGUF model."""


def record_path(model: Path) -> Path:
    """Where the drop record of a single file is written: beside it."""
    return model.with_name(f"{model.name}.{METADATA}")


def find_record(model: Path) -> Path | None:
    """The drop record of this file: its own, or that of the directory if a prune made the directory; None without."""
    if record_path(model).exists():
        return record_path(model)
    shared, manifest = model.with_name(METADATA), model.with_name(MANIFEST)
    if not shared.exists() or not manifest.exists():
        return None
    data = read_json(manifest, "manifest", CheckpointError)
    return shared if isinstance(data, dict) and data.get("kind") == KIND else None


def gguf_record(source: GgufModel, drop_map: DropMap) -> dict[str, Any]:
    """The content of expert_drop_metadata.json for a cut of `source`, with the record of an earlier cut inside.

    Raises `CheckpointError` if the earlier record does not describe `source`, `MapError` if it cannot be read.
    """
    fitted = DropMap({i: drop_map.drop[i] for i in source.moe_layers}, source.num_experts)
    previous = None
    if (earlier := find_record(source.path)) is not None:
        previous = read_record(earlier)
        if (found := previous.get("target_experts")) != source.num_experts:
            raise CheckpointError(
                f"{earlier} does not describe how this model was pruned",
                expected=f"target_experts {source.num_experts}",
                actual=str(found)[:100],
                remedy="remove the file if it came from elsewhere",
            )
    name = str(source.gguf.get("general.name") or split_stem(source.path.name))
    return make_record(name, source.fingerprint, fitted, previous)
