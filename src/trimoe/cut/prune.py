"""Cut experts out of a safetensors checkpoint by byte ranges: no torch, no tensor in memory.

Invariants: everything is checked before the first byte is written; the kernel copies the bytes (copy_file_range, or
pread/pwrite in 8 MiB blocks where the file system refuses); the output appears under its name only when complete and
synced; the same input gives the same bytes. Kept experts stay in ascending order and are renumbered from 0.
Not guaranteed: that weight values are sound (calibrate and certify look at values; the cut does not).
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe import __version__
from trimoe.artifact import publish_dir, require_absent, require_space
from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint, ExpertTensor, open_checkpoint
from trimoe.model.safetensors import TensorInfo, header_bytes, nbytes_of

Progress = Callable[[int, int, str], None]
BLOCK = 8 << 20
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


@dataclass(frozen=True)
class Piece:
    """An output tensor: its name, type, shape, and the source ranges that make it, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: TensorInfo
    ranges: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return nbytes_of(self.dtype, self.shape)


@dataclass
class PruneReport:
    """What a cut did or (dry run) would do. Sizes in bytes."""

    out: str
    experts_before: int
    experts_after: int
    layers: int
    bytes_before: int
    bytes_after: int
    shards: int
    dry_run: bool
    warnings: list[str] = field(default_factory=list)


def plan_tensor(info: TensorInfo, role: ExpertTensor | None, keep: list[int], prefix_name: str | None = None) -> Piece | None:
    """The piece of one tensor, or None when it belongs to a dropped expert. `keep` are the layer's kept ids."""
    if role is None:
        return Piece(info.name, info.dtype, info.shape, info, ((info.start, info.end),))
    if role.expert is not None:
        if role.expert not in keep:
            return None
        return Piece(prefix_name or info.name, info.dtype, info.shape, info, ((info.start, info.end),))
    outer = 1
    for size in info.shape[: role.axis]:
        outer *= size
    experts = info.shape[role.axis]
    step = info.nbytes // (outer * experts)
    ranges: list[tuple[int, int]] = []
    for o in range(outer):
        for e in keep:
            start = info.start + (o * experts + e) * step
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], start + step)
            else:
                ranges.append((start, start + step))
    shape = (*info.shape[: role.axis], len(keep), *info.shape[role.axis + 1 :])
    return Piece(info.name, info.dtype, shape, info, tuple(ranges))


def plan_cut(checkpoint: Checkpoint, drop_map: DropMap) -> list[Piece]:
    """Every output tensor in source order. Raises `MapError` when the map does not fit."""
    drop_map.validate(checkpoint.num_layers, checkpoint.num_experts, checkpoint.top_k, checkpoint.fingerprint)
    keeps = {layer: drop_map.keep(layer, checkpoint.num_experts) for layer in range(checkpoint.num_layers)}
    pieces = []
    for info in checkpoint.index.values():
        role = checkpoint.expert_tensors.get(info.name)
        renamed = None
        if role is not None and role.expert is not None and role.expert in keeps[role.layer]:
            template = checkpoint.prefix.replace("{L}", str(role.layer)) + checkpoint.arch.roles[role.role].tensor
            renamed = template.replace("{E}", str(keeps[role.layer].index(role.expert)))
        piece = plan_tensor(info, role, keeps[role.layer] if role else [], renamed)
        if piece is not None:
            pieces.append(piece)
    return pieces


def plan_shards(pieces: list[Piece], max_shard: int | None) -> list[list[Piece]]:
    """Pieces by output file: as in the source, or filled up to `max_shard` bytes."""
    shards: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if max_shard is None:
            new = not shards or piece.source.file != shards[-1][-1].source.file
        else:
            new = not shards or size + piece.nbytes > max_shard
        if new:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.nbytes
    return shards


def edited_config(checkpoint: Checkpoint, kept: int) -> bytes:
    """The original config.json with the expert count replaced and nothing else: key order and indent are kept."""
    text = (checkpoint.path / "config.json").read_text()
    config = json.loads(text)
    scope = config
    for key in checkpoint.config_scope:
        scope = scope[key]
    scope[checkpoint.arch.config.num_experts] = kept
    lines = text.splitlines()
    indent = len(lines[1]) - len(lines[1].lstrip()) if len(lines) > 1 else None
    return (json.dumps(config, indent=indent, ensure_ascii=False) + ("\n" if text.endswith("\n") else "")).encode()


def prune(
    model: Path | str,
    drop_map: DropMap,
    out: Path,
    *,
    max_shard: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PruneReport:
    """Cut `drop_map` out of the checkpoint `model` into the new directory `out`.

    Raises `CheckpointError`, `MapError`, `BadInput` (output exists), `MissingPrerequisite` (disk space) before
    anything is written.
    """
    checkpoint = open_checkpoint(model)
    pieces = plan_cut(checkpoint, drop_map)
    shards = plan_shards(pieces, max_shard)
    kept = checkpoint.num_experts - len(drop_map.drop[0])
    total = sum(p.nbytes for p in pieces)
    report = PruneReport(str(out), checkpoint.num_experts, kept, checkpoint.num_layers, checkpoint.nbytes, total,
                         len(shards), dry_run)  # fmt: skip
    others = sorted(f for f in checkpoint.path.iterdir() if f.is_file() and not f.name.endswith(_WEIGHTS))
    others = [f for f in others if f.name not in ("config.json", "expert_drop_metadata.json", "certificate.json", "trimoe.json")]
    require_absent(out)
    require_space(out, total + sum(f.stat().st_size for f in others))
    if dry_run:
        return report
    with publish_dir(out) as temporary:
        names = shard_names(len(shards))
        done = 0
        for name, shard in zip(names, shards, strict=True):
            for written in write_shard(temporary / name, shard):
                done += written
                if progress is not None:
                    progress(done, total, name)
        if len(names) > 1:
            weight_map = {p.name: n for n, shard in zip(names, shards, strict=True) for p in shard}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (temporary / "config.json").write_bytes(edited_config(checkpoint, kept))
        for file in others:
            shutil.copyfile(file, temporary / file.name)
        metadata = drop_metadata(checkpoint, drop_map, kept)
        (temporary / "expert_drop_metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        manifest = {"kind": "pruned checkpoint", "tool": f"trimoe {__version__}", "base": checkpoint.fingerprint,
                    "map": drop_map.content_hash, "map_metadata": drop_map.metadata}  # fmt: skip
        (temporary / "trimoe.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return report


def drop_metadata(checkpoint: Checkpoint, drop_map: DropMap, kept: int) -> dict[str, Any]:
    """expert_drop_metadata.json in the published layout (protocol section 5)."""
    layers = range(checkpoint.num_layers)
    return {
        "base_model": checkpoint.config.get("_name_or_path") or checkpoint.path.resolve().name,
        "original_experts": checkpoint.num_experts,
        "target_experts": kept,
        "per_layer_keep": {str(i): drop_map.keep(i, checkpoint.num_experts) for i in layers},
        "per_layer_drop": {str(i): list(drop_map.drop[i]) for i in layers},
    }


def shard_names(count: int) -> list[str]:
    """Hugging Face's names for `count` shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def write_shard(path: Path, pieces: list[Piece]) -> Iterator[int]:
    """Write one file; yields the bytes of each copied block."""
    header = header_bytes({p.name: (p.dtype, p.shape) for p in pieces}, {"format": "pt"})
    sources: dict[Path, int] = {}
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(target, header)
        for piece in pieces:
            if piece.source.file not in sources:
                sources[piece.source.file] = os.open(piece.source.file, os.O_RDONLY)
            for start, end in piece.ranges:
                yield from _copy(sources[piece.source.file], target, start, end, piece.name)
    finally:
        os.close(target)
        for fd in sources.values():
            os.close(fd)


def _copy(source: int, target: int, start: int, end: int, name: str) -> Iterator[int]:
    """Append `source[start:end]` to `target` in the kernel where possible."""
    while start < end:
        want = min(BLOCK, end - start)
        try:
            count = os.copy_file_range(source, target, want, offset_src=start)
        except OSError as exc:
            if exc.errno not in _NOT_SUPPORTED:
                raise
            count = _write_all(target, os.pread(source, want, start))
        if count == 0:
            raise CheckpointError(f"tensor {name} ended early while it was copied", remedy="the source file changed")
        start += count
        yield count


def _write_all(target: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


_NOT_SUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # no in-kernel copy here
