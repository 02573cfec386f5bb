"""Prune a GGUF model in any quantization, and its importance matrix, by copying byte ranges.

Invariants: everything is checked before the first byte is written; the output appears under its name only when it is
complete and its header has been read back; the same input gives the same bytes, even across interrupted runs; nothing
is converted and no weight is held in memory. Not guaranteed: that the weights are sound (they are hashed as they are
written, not interpreted; certify compares every byte).
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trimoe.choose.dropmap import DropMap
from trimoe.cut.gguf.history import KIND, find_record, gguf_record, record_path
from trimoe.cut.gguf.plan import GgufPart, GgufPlan, Layout, plan_gguf
from trimoe.cut.report import CutOptions, PruneReport, write_error
from trimoe.errors import BadInput, CheckpointError, UsageError
from trimoe.io.atomic import is_leftover, partial_bytes, publish_dir, publish_large_file, require_absent, require_space
from trimoe.io.canonical import canonical_json
from trimoe.io.copying import Copier
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.manifest import manifest_path, write_manifest
from trimoe.io.watch import Stamp, Watch, stamp
from trimoe.io.writing import read_back, write_files
from trimoe.model.files import METADATA, require_planned
from trimoe.model.gguf.file import Gguf, open_gguf, parts, split_stem
from trimoe.model.gguf.format import header_bytes, padded
from trimoe.model.gguf.model import GgufModel, open_gguf_model

CutMatrix = Callable[[Path | None], list[str]]
"""Checks the importance matrix and, given a path, writes the cut one there."""


def prune_gguf(
    model: Path,
    drop_map: DropMap,
    out: Path,
    options: CutOptions,
    imatrix: Path | None = None,
    imatrix_out: Path | None = None,
) -> PruneReport:
    """Cut `drop_map` out of the GGUF model `model` (any part of a split model): see `trimoe.cut.prune`.

    An `out` that ends in .gguf becomes one file, any other name a directory with files as in the source, or of at most
    `options.max_shard` bytes of tensors. `imatrix` is cut by the same map into `imatrix_out`, in its own format.
    """
    layout = _layout(out, options)
    if (imatrix is None) != (imatrix_out is None):
        raise UsageError("--imatrix and --imatrix-out belong together", expected="both or neither")
    record = find_record(model)
    watch = Watch(model, "cut", lambda: [*parts(model), *(f for f in (record, imatrix) if f is not None)])
    stamps = {file.name: stamp(file) for file in parts(model) if file.exists()}
    source = open_gguf_model(model)
    plan = plan_gguf(source, drop_map, split_stem(source.path.name), layout)
    matrix = None if imatrix is None else _matrix(source, plan, imatrix)
    identity = plan_identity(plan.parts, stamps) if options.hashed else None
    resuming = is_leftover(out, identity)
    _require_places(out, layout, imatrix_out, resuming)
    needed = sum(part.nbytes for part in plan.parts) + 2 * source.gguf.files[0].data_start
    require_space(out, needed - partial_bytes(out))
    report = PruneReport(
        out=str(out),
        experts_before=source.num_experts,
        experts_after=plan.kept,
        layers=len(source.moe_layers),
        tensors_cut=len(source.expert_tensors),
        bytes_before=source.nbytes,
        bytes_after=sum(piece.nbytes for part in plan.parts for piece in part.pieces),
        shards=len(plan.parts),
        dry_run=options.dry_run,
    )
    if matrix is not None:
        report.warnings += matrix(None)
    if options.dry_run:
        return report
    finish = None if matrix is None or imatrix_out is None else partial(_write_matrix, matrix, imatrix_out, resuming)
    job = _Job(source, watch, plan, layout, out, options, report, finish)
    try:
        job.publish(identity)
    except OSError as exc:
        raise write_error(exc, out) from exc
    return report


def _layout(out: Path, options: CutOptions) -> Layout:
    if out.suffix != ".gguf":
        return options.max_shard or "source"
    if isinstance(options.max_shard, int):
        raise UsageError(
            "--max-shard makes several files, and the output is one file",
            expected="a directory as output",
            actual=str(out),
            remedy="give -o without the .gguf suffix",
        )
    return "single"


def _matrix(source: GgufModel, plan: GgufPlan, imatrix: Path) -> CutMatrix:
    # Brings numpy, which no other cut needs.
    from trimoe.cut.gguf.imatrix import cut_imatrix
    from trimoe.model.gguf.imatrix import open_imatrix

    return partial(cut_imatrix, source, open_imatrix(imatrix), plan.keeps)


def _write_matrix(matrix: CutMatrix, out: Path, resuming: bool) -> None:
    if resuming:  # the interrupted run may have written it; in any other run it is not ours and is not replaced
        out.unlink(missing_ok=True)
    matrix(out)


def _require_places(out: Path, layout: Layout, imatrix_out: Path | None, resuming: bool) -> None:
    """Refuse outputs that exist, and files beside them that are not from an earlier cut."""
    require_absent(out)
    if layout == "single":
        _require_ours(record_path(out), "per_layer_drop")
        _require_ours(manifest_path(out), "kind")
    if imatrix_out is None:
        return
    if imatrix_out in (out, record_path(out), manifest_path(out)):
        raise UsageError(
            f"--imatrix-out {imatrix_out} is another file of this run",
            expected="a name of its own",
            remedy="choose another --imatrix-out",
        )
    if not resuming:  # an interrupted run wrote the matrix before the model got its name
        require_absent(imatrix_out)


def _require_ours(beside: Path, key: str) -> None:
    """Raise `BadInput` for a file beside the output unless an earlier cut wrote it; only such a file is replaced."""
    if beside.exists() or beside.is_symlink():
        try:
            found = read_json(beside, "file")
        except BadInput:
            found = None
        if beside.is_symlink() or not isinstance(found, dict) or key not in found:
            raise BadInput(
                f"{beside} exists and is not from an earlier prune",
                expected="no such file",
                remedy="move it, or choose another -o",
            )


@dataclass(frozen=True)
class _Job:
    """Everything that is written for one model. `finish` writes what belongs to the model beside its directory."""

    source: GgufModel
    watch: Watch
    plan: GgufPlan
    layout: Layout
    out: Path
    options: CutOptions
    report: PruneReport
    finish: Callable[[], None] | None

    def publish(self, identity: str | None) -> None:
        """Write everything and publish it under the final name."""
        record, sync = gguf_record(self.source, self.plan.drop_map), self.options.sync
        inputs = {
            "base": self.source.fingerprint,
            "drop": self.plan.drop_map.content_hash,
            "layout": self.layout,
            "map_metadata": self.plan.drop_map.metadata,
        }
        if self.layout == "single":
            with publish_large_file(self.out, sync=sync, identity=identity) as place:
                hashes = self._write(place.parent, [place.name])
                # The files beside the model come first: its name appears last, so whatever has the name is complete.
                write_json(record_path(self.out), record, overwrite=True, sync=sync)
                write_manifest(self.out, KIND, inputs, hashes, sync=sync)
            return
        with publish_dir(self.out, sync=sync, identity=identity) as folder:
            stem = split_stem(self.source.path.name)
            hashes = self._write(folder, [part.name or f"{stem}.gguf" for part in self.plan.parts])
            write_json(folder / METADATA, record, sync=sync)
            write_manifest(folder, KIND, inputs, hashes, sync=sync)

    def _write(self, folder: Path, names: list[str]) -> dict[str, Any] | None:
        """Write the model's files into a temporary folder; returns their sizes and hashes."""
        options, parts = self.options, self.plan.parts
        files = {name: (part.nbytes, partial(_append_part, part)) for name, part in zip(names, parts, strict=True)}
        written = write_files(folder, files, jobs=options.threads, kernel=not options.hashed, progress=options.progress)
        self.report.copied_by, self.report.bytes_resumed = written.methods, written.resumed
        if options.verify:
            read_back(folder, written.digests, options.progress)
        _verify_headers(open_gguf(folder / names[0]), parts)
        if self.finish is not None:
            self.finish()
        self.watch.require_unchanged()
        return written.hashes(folder)


def plan_identity(parts: tuple[GgufPart, ...], stamps: dict[str, Stamp]) -> str:
    """Hash of everything that decides the bytes of the output files; a killed run of the same identity can be
    resumed."""
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


def _verify_headers(written: Gguf, parts: tuple[GgufPart, ...]) -> None:
    """Read the written headers back: every planned tensor and key is present in order, and no file is short."""
    found = {name: (info.dtype, info.shape) for name, info in written.index.items()}
    wanted = {piece.name: (piece.source.dtype, piece.shape) for part in parts for piece in part.pieces}
    require_planned(found, wanted)
    in_order = list(found) == list(wanted)
    for file, part in zip(written.files, parts, strict=True):
        if not in_order or tuple(f.raw for f in file.fields.values()) != tuple(f.raw for f in part.fields):
            raise CheckpointError(
                f"the header of {file.path.name} was not written as planned", remedy="run again; check the disk"
            )
