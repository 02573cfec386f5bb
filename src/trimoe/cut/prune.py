"""Cut experts out of a safetensors checkpoint by byte ranges: no torch, no tensor in memory.

Invariants: everything is checked before the first byte is written; the output appears under its name only when it is
complete and its headers have been read back; the same input gives the same bytes, also when killed runs lie between.
Nothing is converted. Weights are hashed on their way (the manifest says what was written; `verify` reads it back).
Not guaranteed: that weight values are sound (calibrate and certify look for NaN). Weights are left to the kernel's
writeback as `cp` does; `sync=True` waits for the disk.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.cut.config import edited_files
from trimoe.cut.plan import DEFAULT_SHARD, Shard, plan_cut, plan_shards
from trimoe.cut.record import make_record, read_record
from trimoe.errors import BadInput, CheckpointError, MapError, MissingPrerequisite
from trimoe.io.copying import Copier
from trimoe.io.progress import Progress
from trimoe.io.publish import (
    canonical_json,
    partial_bytes,
    publish_dir,
    require_absent,
    require_space,
    write_manifest,
)
from trimoe.io.writing import Written, read_back, write_files
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.files import INDEX, METADATA, other_files, source_stamps
from trimoe.model.safetensors import header_bytes, read_header, read_index


@dataclass
class PruneReport:
    """What a cut did or (dry run) would do. Sizes in bytes of tensors."""

    out: str
    experts_before: int
    experts_after: int
    layers: int
    tensors_cut: int
    bytes_before: int
    bytes_after: int
    shards: int
    dry_run: bool
    bytes_resumed: int = 0
    """Of an earlier, killed or interrupted run: verified by their hashes and kept."""
    copied_by: list[str] = field(default_factory=list)
    files_copied: list[str] = field(default_factory=list)
    files_left_out: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def prune(
    model: Path | str,
    drop_map: DropMap,
    out: Path | str,
    *,
    max_shard: int | None = DEFAULT_SHARD,
    dry_run: bool = False,
    sync: bool = False,
    verify: bool = False,
    hashed: bool = True,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> PruneReport:
    """Cut `drop_map` out of the checkpoint `model` into the new directory `out`.

    `max_shard` is bytes of tensors per file, None means files as in the source. What a killed or interrupted run of the
    same cut left is verified and continued. `verify` reads the written weights back from the disk and compares hashes;
    `hashed=False` lets the kernel move the bytes, unhashed and not resumable. `jobs` files are written at a time
    (default: one per core, at most 4). Raises, before anything is written, `CheckpointError`, `MapError`, `BadInput`
    (output exists) or `MissingPrerequisite` (disk space).
    """
    out = Path(out)
    stamps = source_stamps(model)
    checkpoint = open_checkpoint(model)
    shards = plan_shards(plan_cut(checkpoint, drop_map), max_shard)
    kept = checkpoint.num_experts - len(drop_map.drop[checkpoint.moe_layers[0]])
    previous = previous_record(checkpoint)
    keeps = {i: tuple(drop_map.keep(i, checkpoint.num_experts)) for i in checkpoint.moe_layers}
    edited = edited_files(checkpoint, keeps)
    files, left_out = other_files(checkpoint.path)
    total = sum(shard.nbytes for shard in shards)
    require_absent(out)
    needed = total + sum(file.stat().st_size for file in files) + (1 << 20) * len(shards)
    require_space(out, needed - partial_bytes(out))
    report = PruneReport(
        str(out),
        checkpoint.num_experts,
        kept,
        len(checkpoint.moe_layers),
        len(checkpoint.expert_tensors),
        checkpoint.nbytes,
        total,
        len(shards),
        dry_run,
        files_copied=[file.relative_to(checkpoint.path).as_posix() for file in files],
        files_left_out=left_out,
    )
    if dry_run:
        return report
    try:
        with publish_dir(out, sync=sync, identity=plan_identity(shards, stamps) if hashed else None) as folder:
            written = write_shards(folder, shards, jobs=jobs, kernel=not hashed, progress=progress)
            report.copied_by, report.bytes_resumed = written.methods, written.resumed
            if verify and hashed:
                read_back(folder, written.digests, progress)
            for file, name in zip(files, report.files_copied, strict=True):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / name)
            for name, content in edited.items():
                (folder / name).write_bytes(content)
            _write_json(folder / METADATA, drop_metadata(checkpoint, drop_map, previous))
            inputs = {
                "base": checkpoint.fingerprint,
                "drop": drop_map.content_hash,
                "max_shard": max_shard,
                "map_metadata": drop_map.metadata,
            }
            hashes = {
                name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
                for name, digest in sorted(written.digests.items())
            }
            write_manifest(folder, "pruned checkpoint", inputs, hashes or None, sync=sync)
            _verify(folder, shards)
            if source_stamps(model) != stamps:
                raise CheckpointError(
                    f"{model} was modified while it was cut",
                    expected="a source at rest",
                    remedy="wait until nothing writes to it and run again",
                )
    except OSError as exc:
        raise _explained(exc, out) from exc
    return report


def plan_identity(shards: list[Shard], stamps: dict[str, tuple[int, int, int]]) -> str:
    """Hash of all that decides the bytes of the output files: a killed run of the same identity can be continued.

    The source is identified by the stamps of its files, not by its fingerprint: that samples the weights, and a source
    changed between its samples would be continued into a mixture.
    """
    digest = hashlib.sha256(canonical_json(stamps))
    for shard in shards:
        digest.update(shard.name.encode() + shard_header(shard))
        for piece in shard.pieces:
            place = [piece.source.file.name, piece.source.start, piece.source.end, piece.axis, piece.keep]
            digest.update(canonical_json(place))
    return digest.hexdigest()


def write_shards(
    folder: Path,
    shards: list[Shard],
    *,
    jobs: int | None = None,
    kernel: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write all shards and, for more than one, the index."""
    files = {shard.name: (shard.nbytes, partial(_append_shard, shard)) for shard in shards}
    written = write_files(folder, files, jobs=jobs or min(4, os.cpu_count() or 1), kernel=kernel, progress=progress)
    if len(shards) > 1:
        total = sum(shard.nbytes for shard in shards)
        weight_map = {piece.name: shard.name for shard in shards for piece in shard.pieces}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return written


def shard_header(shard: Shard) -> bytes:
    """The first bytes of an output file."""
    metadata = {"format": "pt", **read_header(shard.pieces[0].source.file)[1]}
    return header_bytes({piece.name: (piece.dtype, piece.shape) for piece in shard.pieces}, metadata)


def _append_shard(shard: Shard, copier: Copier) -> Iterator[int]:
    """Write one file; yields the bytes of each copied block."""
    copier.write(shard_header(shard))
    for piece in shard.pieces:
        yield from copier.append(piece.source.file, piece.ranges())
    copier.unchanged()


def _verify(folder: Path, shards: list[Shard]) -> None:
    """Read the written headers back: every planned tensor is there, with its shape, and no file is short."""
    found = {name: (info.dtype, info.shape) for name, info in read_index(folder).items()}
    wanted = {piece.name: (piece.dtype, piece.shape) for shard in shards for piece in shard.pieces}
    if found != wanted:
        wrong = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"tensor {wrong} was not written as planned",
            expected=str(wanted.get(wrong)),
            actual=str(found.get(wrong)),
            remedy="run again; check the disk",
        )


def previous_record(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The record that the source itself has. Raises `MapError` if it is not about the source."""
    file = checkpoint.path / METADATA
    if not file.exists():
        return None
    record = read_record(file)
    try:
        make_record("", "", DropMap(dict.fromkeys(checkpoint.moe_layers, ()), checkpoint.num_experts), record)
    except MapError as exc:
        raise MapError(
            f"{file} does not describe how this model was cut",
            actual=exc.subject,
            remedy="remove the file if it came from elsewhere",
        ) from exc
    return record


def drop_metadata(checkpoint: Checkpoint, drop_map: DropMap, previous: dict[str, Any] | None) -> dict[str, Any]:
    """The content of expert_drop_metadata.json."""
    fitted = DropMap({i: drop_map.drop[i] for i in checkpoint.moe_layers}, checkpoint.num_experts)
    return make_record(base_name(checkpoint), checkpoint.fingerprint, fitted, previous)


def base_name(checkpoint: Checkpoint) -> str:
    """The original's name: from config.json, from a hub cache path (models--ORG--NAME), or its directory's name."""
    if name := checkpoint.config.get("_name_or_path"):
        return str(name)
    path = checkpoint.path.resolve()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _explained(exc: OSError, out: Path) -> BadInput | MissingPrerequisite:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return MissingPrerequisite(
            f"the disk became full while {out} was written",
            expected="the space checked before",
            actual=str(exc),
            remedy="free some space; nothing was left behind",
        )
    return BadInput(
        f"{out} could not be written",
        expected="readable input and a writable place",
        actual=str(exc),
        remedy="check permissions and the disk; nothing was left behind",
    )
