"""Cut experts out of a GGUF model, and out of its importance matrix, in whatever quantization they are.

Invariants: everything is checked before the first byte is written; the output appears under its name only when it is
complete and its header has been read back; the same input gives the same bytes, also when killed runs lie between;
nothing is converted and no weight is held in memory. Not guaranteed: that the weights are sound (they are hashed on
their way, not interpreted; certify compares every byte).
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.cut.gguf.plan import GgufPart, Layout, complete_map, plan_gguf
from trimoe.cut.prune import PruneReport, _explained
from trimoe.cut.record import make_record, read_record
from trimoe.errors import BadInput, CheckpointError, UsageError
from trimoe.io.copying import Copier
from trimoe.io.progress import Progress
from trimoe.io.publish import (
    MANIFEST,
    canonical_json,
    is_leftover,
    partial_bytes,
    publish_dir,
    publish_large_file,
    read_json,
    require_absent,
    require_space,
    write_json,
    write_manifest,
)
from trimoe.io.writing import read_back, write_files
from trimoe.model.files import METADATA
from trimoe.model.gguf.file import Gguf, open_gguf, split_stem
from trimoe.model.gguf.format import header_bytes, padded
from trimoe.model.gguf.model import GgufModel, open_gguf_model

KIND = "pruned GGUF"


def prune_gguf(
    model: Path | str,
    drop_map: DropMap,
    out: Path | str,
    *,
    max_shard: int | None = None,
    imatrix: Path | None = None,
    imatrix_out: Path | None = None,
    dry_run: bool = False,
    sync: bool = False,
    verify: bool = False,
    hashed: bool = True,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> PruneReport:
    """Cut `drop_map` out of the GGUF model `model` (any part of a split names all of it).

    `out` ending in .gguf becomes one file; any other name a directory with files as in the source, or of at most
    `max_shard` bytes of tensors. `imatrix` is cut by the same map into `imatrix_out`, in its own format. `sync`,
    `verify`, `hashed` and `jobs` are those of `prune`, and so is what happens after a kill. Raises, before anything is
    written, `CheckpointError`, `MapError`, `UsageError`, `BadInput` (output exists) or `MissingPrerequisite` (space).
    """
    out = Path(out)
    single = out.suffix == ".gguf"
    if single and max_shard is not None:
        raise UsageError(
            "--max-shard makes several files, and the output is one",
            expected="a directory as output",
            actual=str(out),
            remedy="leave .gguf away from -o",
        )
    if (imatrix is None) != (imatrix_out is None):
        raise UsageError("--imatrix and --imatrix-out belong together", expected="both or neither")
    source = open_gguf_model(model)
    stamps = _stamps(source)
    drop_map = complete_map(source, drop_map)
    stem = split_stem(source.path.name)
    layout: Layout = "single" if single else max_shard or "source"
    parts = plan_gguf(source, drop_map, stem, layout)
    kept = source.num_experts - len(drop_map.drop[source.moe_layers[0]])
    matrix: Callable[[Path | None], None] | None = None
    if imatrix is not None:  # brings numpy, which no other cut needs
        from trimoe.cut.gguf.imatrix import cut_imatrix
        from trimoe.model.gguf.imatrix import open_imatrix

        matrix = partial(cut_imatrix, source, open_imatrix(imatrix), drop_map)
    total = sum(piece.nbytes for part in parts for piece in part.pieces)
    identity = plan_identity(parts, stamps) if hashed else None
    again = is_leftover(out, identity)  # a killed run had the matrix written before the model got its name
    require_absent(out)
    if single:
        _require_ours(own_record(out), "per_layer_drop")
        _require_ours(out.with_name(out.name + ".manifest.json"), "kind")
    if imatrix_out is not None:
        if imatrix_out in (out, own_record(out), out.with_name(out.name + ".manifest.json")):
            raise UsageError(
                f"--imatrix-out {imatrix_out} is another file of this run",
                expected="a name of its own",
                remedy="choose another --imatrix-out",
            )
        if not again:
            require_absent(imatrix_out)
    needed = sum(part.nbytes for part in parts) + 2 * source.gguf.files[0].data_start
    require_space(out, needed - partial_bytes(out))
    report = PruneReport(
        str(out),
        source.num_experts,
        kept,
        len(source.moe_layers),
        len(source.expert_tensors),
        source.nbytes,
        total,
        len(parts),
        dry_run,
    )
    if matrix is not None:
        matrix(None)
    if dry_run:
        return report
    record = drop_record(source, drop_map)
    inputs = {
        "base": source.fingerprint,
        "drop": drop_map.content_hash,
        "layout": layout,
        "map_metadata": drop_map.metadata,
    }

    def write(folder: Path, names: list[str]) -> dict[str, Any] | None:
        """Everything below the final name; returns sizes and hashes of the model's files."""
        files = {name: (part.nbytes, partial(_append_part, part)) for name, part in zip(names, parts, strict=True)}
        written = write_files(
            folder, files, jobs=jobs or min(4, os.cpu_count() or 1), kernel=not hashed, progress=progress
        )
        report.copied_by, report.bytes_resumed = written.methods, written.resumed
        if verify and hashed:
            read_back(folder, written.digests, progress)
        _verify(open_gguf(folder / names[0]), parts)
        if _stamps(source) != stamps:
            raise CheckpointError(
                f"{model} was modified while it was cut",
                expected="a source at rest",
                remedy="wait until nothing writes to it and run again",
            )
        if matrix is not None and imatrix_out is not None:
            if again:  # else it is not ours, and is not replaced
                imatrix_out.unlink(missing_ok=True)
            matrix(imatrix_out)
        return {
            name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
            for name, digest in sorted(written.digests.items())
        } or None

    try:
        if single:
            with publish_large_file(out, sync=sync, identity=identity) as place:
                hashes = write(place.parent, [place.name])
                # What goes with the model first: its name is the last to appear, so what it names is complete.
                write_json(own_record(out), record, overwrite=True, sync=sync)
                write_manifest(out, KIND, inputs, hashes, sync=sync)
        else:
            with publish_dir(out, sync=sync, identity=identity) as folder:
                hashes = write(folder, [part.name or f"{stem}.gguf" for part in parts])
                write_json(folder / METADATA, record, sync=sync)
                write_manifest(folder, KIND, inputs, hashes, sync=sync)
    except OSError as exc:
        raise _explained(exc, out) from exc
    return report


def _require_ours(beside: Path, key: str) -> None:
    """A file beside the output that an earlier cut wrote is replaced, one of another origin is not (`BadInput`)."""
    if beside.exists() or beside.is_symlink():
        try:
            found = read_json(beside, "file")
        except BadInput:
            found = None
        if beside.is_symlink() or not isinstance(found, dict) or key not in found:
            raise BadInput(
                f"{beside} exists and is not of an earlier cut",
                expected="no such file",
                remedy="move it, or choose another -o",
            )


def _stamps(source: GgufModel) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and time of change of the inode of every file; different after any write."""
    found = {}
    for file in source.gguf.files:
        status = file.path.stat()
        found[file.path.name] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def plan_identity(parts: list[GgufPart], stamps: dict[str, tuple[int, int, int]]) -> str:
    """Hash of all that decides the bytes of the output files: a killed run of the same identity can be continued."""
    digest = hashlib.sha256(canonical_json(stamps))
    for part in parts:
        digest.update(part.name.encode() + _header(part))
        for piece in part.pieces:
            digest.update(canonical_json([piece.source.file.name, piece.source.start, piece.source.end, piece.keep]))
    return digest.hexdigest()


def _header(part: GgufPart) -> bytes:
    tensors = {piece.name: (piece.source.dtype, piece.shape) for piece in part.pieces}
    return header_bytes(part.version, part.fields, tensors, part.alignment)


def _append_part(part: GgufPart, copier: Copier) -> Iterator[int]:
    """Write one file; yields the bytes of each copied block."""
    copier.write(_header(part))
    for piece in part.pieces:
        yield from copier.append(piece.source.file, piece.ranges())
        gap = padded(piece.nbytes, part.alignment) - piece.nbytes
        copier.write(bytes(gap))
        yield gap
    copier.unchanged()


def _verify(written: Gguf, parts: list[GgufPart]) -> None:
    """Read the written headers back: every planned tensor and key is there, and no file is short."""
    found = {name: (info.dtype, info.shape) for name, info in written.index.items()}
    wanted = {piece.name: (piece.source.dtype, piece.shape) for part in parts for piece in part.pieces}
    if list(found.items()) != list(wanted.items()):
        wrong = min((n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n)), default="order")
        raise CheckpointError(
            f"tensor {wrong} was not written as planned",
            expected=str(wanted.get(wrong)),
            actual=str(found.get(wrong)),
            remedy="run again; check the disk",
        )
    for file, part in zip(written.files, parts, strict=True):
        if tuple(field.raw for field in file.fields.values()) != tuple(field.raw for field in part.fields):
            raise CheckpointError(
                f"the metadata of {file.path.name} were not written as planned", remedy="run again; check the disk"
            )


def own_record(model: Path) -> Path:
    """Where the record of a cut lies beside a single file."""
    return model.with_name(f"{model.name}.{METADATA}")


def record_of(model: Path) -> Path | None:
    """The record of the cut that made this file: its own, or that of the directory if a cut made the directory."""
    if own_record(model).exists():
        return own_record(model)
    shared, manifest = model.with_name(METADATA), model.with_name(MANIFEST)
    if not shared.exists() or not manifest.exists():
        return None
    data = read_json(manifest, "manifest", CheckpointError)
    return shared if isinstance(data, dict) and data.get("kind") == KIND else None


def drop_record(source: GgufModel, drop_map: DropMap) -> dict[str, Any]:
    """The content of expert_drop_metadata.json in the published layout. The record of an earlier cut is kept inside."""
    fitted = DropMap({i: drop_map.drop[i] for i in source.moe_layers}, source.num_experts)
    previous = None
    if (earlier := record_of(source.path)) is not None:
        previous = read_record(earlier)
        if (found := previous.get("target_experts")) != source.num_experts:
            raise CheckpointError(
                f"{earlier} does not describe how this model was cut",
                expected=f"target_experts {source.num_experts}",
                actual=str(found)[:100],
                remedy="remove the file if it came from elsewhere",
            )
    name = str(source.gguf.get("general.name") or split_stem(source.path.name))
    return make_record(name, source.fingerprint, fitted, previous)
