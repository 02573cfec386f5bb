"""Writing the files of an NVFP4 checkpoint: largest weights first, then codes and scales; both passes can resume."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np

from trimoe.io.copying import Copier
from trimoe.io.progress import Progress
from trimoe.model.files import INDEX
from trimoe.quantize.nvfp4.codes import global_scale, scale_2
from trimoe.quantize.nvfp4.errors import ErrorSums
from trimoe.quantize.nvfp4.matrices import in_order, largest_in, quantized
from trimoe.quantize.nvfp4.plan import Entry, File, Matrix, Plan


def largest_weights(
    plan: Plan, pool: ThreadPoolExecutor, threads: int, journal: Path, progress: Progress | None
) -> dict[str, np.float32]:
    """The largest weight of every group. `journal` keeps them for a run that resumes this one.

    Raises `CheckpointError` for NaN and infinity.
    """
    if journal.exists():
        return {group: np.float32(value) for group, value in json.loads(journal.read_text()).items()}
    total = sum(matrix.rows * matrix.columns for matrix in plan.matrices)
    found: dict[str, np.float32] = {}
    done = 0
    for matrix, value in zip(plan.matrices, in_order(pool, threads, largest_in, plan.matrices), strict=True):
        found[matrix.group] = max(found.get(matrix.group, np.float32(0)), value)
        done += matrix.rows * matrix.columns
        if progress is not None:
            progress(done, total, f"largest weights: {matrix.name}")
    temporary = journal.with_suffix(".new")
    temporary.write_text(json.dumps({group: float(value) for group, value in found.items()}))
    temporary.rename(journal)
    return found


def append_file(
    file: File,
    largest: Mapping[str, np.float32],
    errors: ErrorSums,
    pool: ThreadPoolExecutor,
    threads: int,
    copier: Copier,
) -> Iterator[int]:
    """Write one file; yields the bytes of each step. Steps in the verified part of an earlier run are skipped."""
    copier.write(file.header)
    yield len(file.header)
    steps = [(matrix, list(entries)) for matrix, entries in groupby(file.entries, key=_made_of)]
    waiting = iter(
        in_order(
            pool,
            threads,
            lambda m: quantized(m, scale_2(largest[m.group])),
            _to_make(copier, len(file.header), steps, errors),
        )
    )
    at = len(file.header)
    for matrix, entries in steps:
        size = sum(entry.nbytes for entry in entries)
        at += size
        if matrix is None:
            for entry in entries:
                yield from _small(entry, largest, copier)
        elif at <= copier.resumed and errors.knows(matrix.name):
            copier.skip(size)
            yield size
        else:
            result = next(waiting)
            for entry in entries:
                copier.write((result.packed if entry.part == "weight" else result.scales).data.cast("B"))
            errors.add({matrix.name: result})
            yield size
    copier.unchanged()


def _made_of(entry: Entry) -> Matrix | None:
    """The matrix that must be quantized for a tensor; None for copies and single numbers."""
    return entry.matrix if entry.part in ("weight", "scale") else None


def _to_make(
    copier: Copier, at: int, steps: list[tuple[Matrix | None, list[Entry]]], errors: ErrorSums
) -> Iterator[Matrix]:
    """The matrices that are not yet in the verified part of the file, or whose errors are unknown."""
    for matrix, entries in steps:
        at += sum(entry.nbytes for entry in entries)
        if matrix is not None and not (at <= copier.resumed and errors.knows(matrix.name)):
            yield matrix


def _small(entry: Entry, largest: Mapping[str, np.float32], copier: Copier) -> Iterator[int]:
    """Write a copied tensor, or the scale of a whole matrix."""
    if entry.source is not None:
        yield from copier.append(entry.source.file, [(entry.source.start, entry.source.end)])
    elif entry.matrix is not None:
        scale = scale_2 if entry.shape == () else global_scale
        copier.write(np.array(scale(largest[entry.matrix.group]), "<f4").tobytes())
        yield entry.nbytes


def write_index(folder: Path, plan: Plan) -> None:
    """The index of the shards; one file needs none."""
    if len(plan.files) > 1:
        weight_map = {entry.name: file.name for file in plan.files for entry in file.entries}
        value = {
            "metadata": {"total_size": sum(file.nbytes for file in plan.files)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / INDEX).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
