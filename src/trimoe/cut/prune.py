"""Prune a model: cut the experts of a drop map out of a checkpoint directory or a GGUF model.

Dispatches on what the model is; `checkpoint` and `gguf.model` do the work. Neither loads torch or holds a tensor.
"""

import os
from pathlib import Path
from typing import Literal

from trimoe.choose.dropmap import DropMap
from trimoe.cut.checkpoint import prune_checkpoint
from trimoe.cut.report import CutOptions, PruneReport
from trimoe.errors import UsageError
from trimoe.io.progress import Progress
from trimoe.model.gguf.file import find_gguf

PathLike = str | os.PathLike[str]


def prune(
    model: PathLike,
    drop_map: DropMap | PathLike,
    out: PathLike,
    *,
    max_shard: int | Literal["source"] | None = None,
    imatrix: PathLike | None = None,
    imatrix_out: PathLike | None = None,
    dry_run: bool = False,
    sync: bool = False,
    verify: bool = False,
    hashed: bool = True,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> PruneReport:
    """Cut `drop_map` (a map or its file) out of `model` into `out`, a new directory or, for GGUF, a new .gguf file.

    `max_shard` limits the bytes of tensors per output file; "source" keeps the files of the source. The default is
    5 GB for a checkpoint and "source" for GGUF. `imatrix` is a GGUF importance matrix, cut by the same map into
    `imatrix_out`.
    `dry_run` checks everything and writes nothing. `sync` waits until the disk holds the output. `verify` reads the
    written weights back from the disk and compares hashes. `hashed=False` lets the kernel move the bytes: unhashed,
    and a killed run starts over. `jobs` files are written at a time (default: one per core, at most 4).
    Otherwise a rerun after a kill or an interrupt verifies what the earlier run wrote and resumes.

    Raises before anything is written: `UsageError`, `CheckpointError`, `MapError`, `BadInput` (the output exists) or
    `MissingPrerequisite` (disk space). Raises `Refused` if `verify` finds a difference.

    >>> small = trimoe.prune(model, drop, out="small")
    >>> small
    PruneReport('small', 24 of 32 experts in 4 layers, 9.2 -> 7.6 MB)
    """
    if verify and not hashed:
        raise UsageError("verify compares hashes, and without hashing there are none", remedy="leave one of them out")
    source, target = Path(model), Path(out)
    gguf = find_gguf(source)
    if gguf is None and (imatrix is not None or imatrix_out is not None):
        raise UsageError("an imatrix is cut only for GGUF models", actual=f"{source} is not a GGUF model")
    chosen = drop_map if isinstance(drop_map, DropMap) else DropMap.load(Path(drop_map))
    options = CutOptions(max_shard, dry_run, sync, verify, hashed, jobs, progress)
    if gguf is None:
        return prune_checkpoint(source, chosen, target, options)
    from trimoe.cut.gguf.model import prune_gguf  # not needed for a checkpoint

    matrix = None if imatrix is None else Path(imatrix)
    return prune_gguf(gguf, chosen, target, options, matrix, None if imatrix_out is None else Path(imatrix_out))
