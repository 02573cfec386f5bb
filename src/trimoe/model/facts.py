"""Facts about a model for `trimoe inspect`: family, layers, experts, layout, sizes. Reads headers and samples."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimoe.errors import UsageError
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.finite import check_finite
from trimoe.model.gguf.file import find_gguf
from trimoe.model.gguf.model import GgufModel, open_gguf_model


def inspect_model(model: Path | str, *, finite: bool = False) -> dict[str, Any]:
    """The facts of a checkpoint directory or GGUF file as JSON values; sizes in bytes.

    With `finite`, every weight of a checkpoint is read. Raises `CheckpointError` for an unknown or damaged model and
    for weights that are NaN or infinite, `UsageError` for `finite` with a GGUF file.
    """
    if (gguf := find_gguf(Path(model))) is not None:
        if finite:
            raise UsageError(
                "--finite reads unquantized weights only",
                expected="a checkpoint directory",
                actual=f"{gguf} is a GGUF file",
                remedy="llama.cpp checks a GGUF file when it loads it with --check-tensors",
            )
        return facts_of_gguf(open_gguf_model(gguf))
    checkpoint = open_checkpoint(model)
    if finite:
        check_finite(checkpoint)
    return {**facts_of_checkpoint(checkpoint), "finite": True if finite else None, "warnings": checkpoint.warnings}


def facts_of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts of a checkpoint as JSON values; sizes in bytes."""
    tensors = checkpoint.expert_tensors
    first = checkpoint.moe_layers[0]
    in_first = [tensor.info.nbytes for name, tensor in tensors.items() if checkpoint.layer_of(name) == first]
    per_expert = any(role.per_expert for role in checkpoint.hf.roles.values())
    return {
        "path": str(checkpoint.path),
        "family": checkpoint.family.name,
        "layout": "one tensor per expert" if per_expert else "stacked experts",
        "prefix": checkpoint.prefix,
        "roles": sorted({tensor.role for tensor in tensors.values()}),
        "draft_blocks": [prefix.rstrip(".") for prefix in checkpoint.draft_blocks],
        "cannot_cut": checkpoint.cannot_cut,
        "groups": None if checkpoint.groups is None else asdict(checkpoint.groups),
        "layers": checkpoint.num_layers,
        "moe_layers": len(checkpoint.moe_layers),
        "experts": checkpoint.num_experts,
        "top_k": checkpoint.top_k,
        "dtypes": sorted({info.dtype for info in checkpoint.index.values()}),
        "tensors": len(checkpoint.index),
        "shards": len({info.file for info in checkpoint.index.values()}),
        "bytes": checkpoint.nbytes,
        "expert_bytes": sum(tensor.info.nbytes for tensor in tensors.values()),
        "bytes_per_expert": sum(in_first) // checkpoint.num_experts,
        "fingerprint": checkpoint.fingerprint,
    }


def facts_of_gguf(model: GgufModel) -> dict[str, Any]:
    """The facts of a GGUF model as JSON values, under the same names; sizes in bytes."""
    experts = [tensor.info for tensor in model.expert_tensors.values()]
    expert_bytes = sum(info.nbytes for info in experts)
    sizes = Counter[str]()
    for info in model.index.values():
        sizes[info.dtype] += info.nbytes
    return {
        "path": str(model.path),
        "family": model.architecture,
        "layout": "GGUF",
        "name": model.gguf.get("general.name"),
        "layers": model.num_layers,
        "moe_layers": len(model.moe_layers),
        "experts": model.num_experts,
        "top_k": model.top_k,
        "dtypes": dict(sorted(sizes.items(), key=lambda pair: -pair[1])),
        "tensors": len(model.index),
        "shards": len(model.gguf.files),
        "bytes": model.nbytes,
        "file_bytes": sum(file.size for file in model.gguf.files),
        "expert_bytes": expert_bytes,
        "expert_dtypes": sorted({info.dtype for info in experts if len(info.shape) == 3}),
        "bytes_per_expert": expert_bytes // (len(model.moe_layers) * model.num_experts),
        "fingerprint": model.fingerprint,
    }
