"""Prune a safetensors checkpoint by copying byte ranges: no torch, no tensor in memory.

Invariants: everything is checked before the first byte is written; the output appears under its name only when it is
complete and its headers have been read back; the same input gives the same bytes, even across interrupted runs. Nothing
is converted. Weights are hashed as they are written (the manifest records the hashes; `verify` reads them back).
Not guaranteed: that weight values are sound (calibrate and certify look for NaN). As with `cp`, the kernel decides when
the weights reach the disk; `sync` waits for it.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.cut.config import edited_files
from trimoe.cut.history import make_record, read_record
from trimoe.cut.plan import DEFAULT_SHARD, Shard, plan_cut, plan_shards, shard_header
from trimoe.cut.report import CutOptions, PruneReport, write_error
from trimoe.errors import MapError
from trimoe.io.atomic import partial_bytes, publish_dir, require_absent, require_space
from trimoe.io.canonical import canonical_json
from trimoe.io.copying import Copier
from trimoe.io.manifest import write_manifest
from trimoe.io.watch import Stamp
from trimoe.io.writing import Written, read_back, write_files
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.files import (
    METADATA,
    copy_files,
    other_files,
    require_planned,
    watch_directory,
    weight_stamps,
    write_indented,
    write_index,
)
from trimoe.model.shards import read_index

_HEADER_SPACE = 1 << 20  # bytes reserved per file for its header, for the check of free space
KIND = "pruned checkpoint"


def prune_checkpoint(model: Path, drop_map: DropMap, out: Path, options: CutOptions) -> PruneReport:
    """Cut `drop_map` out of the checkpoint directory `model` into the new directory `out`: see `trimoe.cut.prune`."""
    watch, stamps = watch_directory(model, "cut"), weight_stamps(model)
    checkpoint = open_checkpoint(model)
    plan = plan_cut(checkpoint, drop_map)
    max_shard = DEFAULT_SHARD if options.max_shard is None else options.max_shard
    limit = None if isinstance(max_shard, str) else max_shard
    shards = plan_shards(plan.pieces, limit)
    previous = previous_record(checkpoint)
    edited = edited_files(checkpoint, plan.keeps, plan.width)
    files, left_out = other_files(checkpoint.path, checkpoint.index)
    report = PruneReport(
        out=str(out),
        experts_before=checkpoint.num_experts,
        experts_after=plan.kept,
        layers=len(checkpoint.moe_layers),
        tensors_cut=len(checkpoint.expert_tensors),
        bytes_before=checkpoint.nbytes,
        bytes_after=sum(shard.nbytes for shard in shards),
        shards=len(shards),
        width_before=None if drop_map.narrow is None else drop_map.narrow.width,
        width_after=plan.width,
        dry_run=options.dry_run,
        files_copied=[file.relative_to(checkpoint.path).as_posix() for file in files],
        files_left_out=left_out,
        warnings=checkpoint.warnings,
    )
    require_absent(out)
    needed = report.bytes_after + sum(file.stat().st_size for file in files) + _HEADER_SPACE * len(shards)
    require_space(out, needed - partial_bytes(out))
    if options.dry_run:
        return report
    identity = plan_identity(shards, stamps) if options.hashed else None
    try:
        with publish_dir(out, sync=options.sync, identity=identity) as folder:
            written = write_shards(folder, shards, options)
            report.copied_by, report.bytes_resumed = written.methods, written.resumed
            if options.verify:
                read_back(folder, written.digests, options.progress)
            copy_files(files, checkpoint.path, folder)
            for name, content in edited.items():
                (folder / name).write_bytes(content)
            dropped = {i: drop_map.drop[i] for i in checkpoint.moe_layers}
            fitted = DropMap(dropped, checkpoint.num_experts, narrow=drop_map.narrow)
            record = make_record(base_name(checkpoint), checkpoint.fingerprint, fitted, previous)
            write_indented(folder / METADATA, record)
            inputs = {
                "base": checkpoint.fingerprint,
                "drop": drop_map.content_hash,
                "max_shard": limit,
                "map_metadata": drop_map.metadata,
            }
            write_manifest(folder, KIND, inputs, written.hashes(folder), sync=options.sync)
            _verify_headers(folder, shards)
            watch.require_unchanged()
    except OSError as exc:
        raise write_error(exc, out) from exc
    return report


def plan_identity(shards: list[Shard], stamps: dict[str, Stamp]) -> str:
    """Hash of everything that decides the bytes of the output files; a killed run of the same identity can be resumed.

    The source is identified by the stamps of its files, not by its fingerprint: the fingerprint samples the weights,
    and a source that changed between its samples would be resumed into a mixture.
    """
    digest = hashlib.sha256(canonical_json(stamps))
    for shard in shards:
        digest.update(shard.name.encode() + shard_header(shard))
        for piece in shard.pieces:
            place = [piece.source.file.name, piece.source.start, piece.source.end, piece.axis, piece.keep]
            kept = [] if piece.blocks is None else [[block.keep for block in piece.blocks]]
            digest.update(canonical_json(place + kept))
    return digest.hexdigest()


def write_shards(folder: Path, shards: list[Shard], options: CutOptions) -> Written:
    """Write all shards and, for more than one, the index."""
    files = {shard.name: (shard.nbytes, partial(_append_shard, shard)) for shard in shards}
    written = write_files(folder, files, jobs=options.threads, kernel=not options.hashed, progress=options.progress)
    if len(shards) > 1:
        shard_of = {piece.name: shard.name for shard in shards for piece in shard.pieces}
        write_index(folder, shard_of, sum(shard.nbytes for shard in shards))
    return written


def _append_shard(shard: Shard, copier: Copier) -> Iterator[int]:
    """Write one file; yields the bytes of each copied block."""
    copier.write(shard_header(shard))
    for piece in shard.pieces:
        if piece.blocks is None:
            yield from copier.append(piece.source.file, piece.ranges())
        for block in piece.blocks or ():
            place = (block.start, block.outer, block.length, block.entry, block.keep)
            yield from copier.append_entries(piece.source.file, *place)
    copier.unchanged()


def _verify_headers(folder: Path, shards: list[Shard]) -> None:
    """Read the written headers back: every planned tensor is present with its shape, and no file is short."""
    found = {name: (info.dtype, info.shape) for name, info in read_index(folder).items()}
    require_planned(found, {piece.name: (piece.dtype, piece.shape) for shard in shards for piece in shard.pieces})


def previous_record(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The drop record of a source that was itself pruned, or None. Raises `MapError` if it does not describe it."""
    file = checkpoint.path / METADATA
    if not file.exists():
        return None
    record = read_record(file)
    nothing = DropMap(dict.fromkeys(checkpoint.moe_layers, ()), checkpoint.num_experts)
    try:
        make_record("", "", nothing, record)
    except MapError as exc:
        raise MapError(
            f"{file} does not describe how this model was pruned",
            actual=exc.subject,
            remedy="remove the file if it came from elsewhere",
        ) from exc
    return record


def base_name(checkpoint: Checkpoint) -> str:
    """The original's name: from config.json, from a hub cache path (models--ORG--NAME), or its directory's name."""
    if name := checkpoint.config.get("_name_or_path"):
        return str(name)
    path = checkpoint.path.resolve()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name
