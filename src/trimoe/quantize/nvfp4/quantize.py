"""A checkpoint as NVFP4A16: 4-bit weights with block scales, activations as they are; streaming, no torch.

Two passes: the largest weight of every matrix (which also finds NaN before anything is written), then codes and scales.
Invariants: memory does not grow with the model; the output appears under its name only when it is complete, its headers
have been read back and every expert in it is quantized; the same input gives the same bytes, whatever the number of
threads and of killed runs between. Not guaranteed: how good the model still is (measure it).
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.cut.plan import DEFAULT_SHARD
from trimoe.errors import CheckpointError, Refused
from trimoe.io.atomic import RESUME, partial_bytes, publish_dir, require_absent, require_space
from trimoe.io.canonical import sha256_json
from trimoe.io.copying import Copier
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST, write_manifest
from trimoe.io.progress import Progress
from trimoe.io.writing import write_files
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.files import INDEX, METADATA, other_files, source_stamps
from trimoe.model.safetensors import read_index
from trimoe.quantize.nvfp4.codes import FLOATS, Quantized, global_scale, scale_2
from trimoe.quantize.nvfp4.config import small_files
from trimoe.quantize.nvfp4.matrices import in_order, largest_in, quantized
from trimoe.quantize.nvfp4.plan import Entry, File, Matrix, Plan, plan_nvfp4
from trimoe.quantize.nvfp4.rules import rules, rules_hash
from trimoe.quantize.nvfp4.sizes import size_of_plan

KIND = "NVFP4 checkpoint"


@dataclass(frozen=True)
class Result:
    """What was made: `facts` for the table, errors by matrix, and whether it was finished before."""

    facts: dict[str, Any]
    errors: dict[str, float]
    kept: bool


def quantize_nvfp4(
    model: Path | str,
    out: Path | str,
    *,
    layout: str = "modelopt",
    max_shard: int = DEFAULT_SHARD,
    threads: int | None = None,
    sync: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize the checkpoint `model` into the new directory `out`; see `plan_nvfp4` for what is refused.

    What a killed run of the same job left is verified and continued; a finished one is verified and kept. Raises before
    anything is written, beyond what `plan_nvfp4` raises, `CheckpointError` for weights that are not finite and
    `MissingPrerequisite` for lack of space.
    """
    out, threads = Path(out), threads or os.cpu_count() or 1
    stamps = source_stamps(model)
    checkpoint = open_checkpoint(model)
    plan = plan_nvfp4(checkpoint, layout, max_shard)
    size = size_of_plan(plan)
    inputs = {
        "base": checkpoint.fingerprint,
        "tier": rules().tier,
        "layout": layout,
        "max_shard": max_shard,
        "rules": rules_hash(checkpoint.family),
    }
    if (found := _finished(out, inputs)) is not None:
        return found
    require_absent(out)
    files, _ = other_files(checkpoint.path)
    small = small_files(checkpoint.path, plan)
    needed = size.file_bytes + sum(file.stat().st_size for file in files) + (4 << 20)
    require_space(out, needed - partial_bytes(out))
    identity = sha256_json({"inputs": inputs, "stamps": stamps})
    with ThreadPoolExecutor(threads) as pool, publish_dir(out, sync=sync, identity=identity) as folder:
        largest = _largest(plan, pool, threads, folder / RESUME / "largest.json", progress)
        errors = _Errors(folder / RESUME / "errors")
        jobs = {
            file.name: (len(file.header) + file.nbytes, partial(_append, file, largest, errors, pool, threads))
            for file in plan.files
        }
        written = write_files(folder, jobs, progress=progress)
        _write_index(folder, plan)
        for file in files:
            target = folder / file.relative_to(checkpoint.path)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
        if (record := checkpoint.path / METADATA).is_file():
            shutil.copyfile(record, folder / METADATA)
        for name, content in small.items():
            (folder / name).write_bytes(content)
        relative = {matrix.name: errors.relative(matrix.name) for matrix in plan.matrices}
        facts = {
            "file_bytes": size.file_bytes,
            "tensor_bytes": size.tensor_bytes,
            "values": size.values,
            "quantized_values": size.quantized_values,
            "bits_per_weight": round(size.bits_per_weight, 4),
            "matrices": len(plan.matrices),
            "relative_error": summary(checkpoint, relative, errors),
            "relative_error_by_matrix": relative,
        }
        hashes = {
            name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
            for name, digest in sorted(written.digests.items())
        }
        write_manifest(folder, KIND, inputs, hashes, facts)
        verify(folder, plan)
        if source_stamps(model) != stamps:
            raise CheckpointError(
                f"{model} was modified while it was quantized",
                expected="a source at rest",
                remedy="wait until nothing writes to it and run again",
            )
    return _result(facts, kept=False)


def verify(folder: Path, plan: Plan) -> None:
    """Read the written headers back: all is as planned, no file is short, and no expert is unquantized.

    Raises `CheckpointError`, or `Refused` naming an expert tensor that is not NVFP4.
    """
    found = {name: (info.dtype, info.shape) for name, info in read_index(folder).items()}
    wanted = {entry.name: (entry.dtype, entry.shape) for entry in plan.entries}
    if found != wanted:
        wrong = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"tensor {wrong} was not written as planned",
            expected=str(wanted.get(wrong)),
            actual=str(found.get(wrong)),
            remedy="run again; check the disk",
        )
    result = open_checkpoint(folder)
    for name, tensor in result.expert_tensors.items():
        matrix = tensor.expert is not None or len(tensor.info.shape) == 3
        if (
            matrix
            and tensor.role in rules().matrices
            and tensor.info.dtype in FLOATS
            and result.layer_of(name) is not None
        ):
            raise Refused(
                f"expert tensor {name} stayed {tensor.info.dtype}",
                expected="U8",
                actual="a checkpoint that only looks quantized",
                remedy="report this defect",
            )


def summary(checkpoint: Checkpoint, relative: dict[str, float], errors: "_Errors") -> dict[str, dict[str, Any]]:
    """Relative errors by kind of module (its name without layer and expert): count, all together, and the worst one."""
    kinds: dict[str, list[str]] = {}
    for name in relative:
        kinds.setdefault(_kind(name), []).append(name)
    table: dict[str, dict[str, Any]] = {}
    for kind, names in sorted(kinds.items()):
        worst = max(names, key=lambda name: relative[name])
        table[kind] = {
            "count": len(names),
            "together": errors.together(names),
            "worst": relative[worst],
            "worst_matrix": worst,
        }
    return table


def _kind(name: str) -> str:
    parts = name.split(".")
    first = next((at for at, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(part for part in parts[first + 1 :] if not part.isdecimal())


class _Errors:
    """Squared errors and norms by matrix; what was found out before a kill is read back from the journal."""

    def __init__(self, journal: Path) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._journal = journal
        for line in journal.read_text().splitlines() if journal.exists() else ():
            try:
                name, error, norm = json.loads(line)
                self._sums[name] = (error, norm)
            except (ValueError, TypeError):
                continue  # cut off by a kill

    def knows(self, name: str) -> bool:
        """Whether the errors of a matrix are known."""
        return name in self._sums

    def add(self, found: dict[str, Quantized]) -> None:
        """Note the errors of some matrices."""
        new = {name: (part.error, part.norm) for name, part in found.items() if name not in self._sums}
        self._sums |= new
        with self._journal.open("a") as file:
            file.write("".join("\n" + json.dumps([name, *sums]) for name, sums in new.items()))

    def relative(self, name: str) -> float:
        """Norm of the error over the norm of the weights; 0 for nothing but zeros."""
        return self.together([name])

    def together(self, names: list[str]) -> float:
        """The same over several matrices."""
        error, norm = (sum(self._sums[name][i] for name in names) for i in (0, 1))
        return round(float(np.sqrt(error / norm)), 7) if norm else 0.0


def _largest(
    plan: Plan, pool: ThreadPoolExecutor, threads: int, journal: Path, progress: Progress | None
) -> dict[str, np.float32]:
    """The largest weight of every group. `journal` keeps it for a run that continues this one."""
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


def _append(
    file: File, largest: dict[str, np.float32], errors: _Errors, pool: ThreadPoolExecutor, threads: int, copier: Copier
) -> Iterator[int]:
    """Write one file; yields the bytes of each step."""
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
    """The matrix whose quantization a tensor needs; none for copies and single numbers."""
    return entry.matrix if entry.part in ("weight", "scale") else None


def _to_make(
    copier: Copier, at: int, steps: list[tuple[Matrix | None, list[Entry]]], errors: _Errors
) -> Iterator[Matrix]:
    """The matrices that are not in the verified part of the file with known errors."""
    for matrix, entries in steps:
        at += sum(entry.nbytes for entry in entries)
        if matrix is not None and not (at <= copier.resumed and errors.knows(matrix.name)):
            yield matrix


def _small(entry: Entry, largest: dict[str, np.float32], copier: Copier) -> Iterator[int]:
    """A copied tensor, or the scale of a whole one."""
    if entry.source is not None:
        yield from copier.append(entry.source.file, [(entry.source.start, entry.source.end)])
    elif entry.matrix is not None:
        scale = scale_2 if entry.shape == () else global_scale
        copier.write(np.array(scale(largest[entry.matrix.group]), "<f4").tobytes())
        yield entry.nbytes


def _write_index(folder: Path, plan: Plan) -> None:
    if len(plan.files) > 1:
        weight_map = {entry.name: file.name for file in plan.files for entry in file.entries}
        value = {
            "metadata": {"total_size": sum(file.nbytes for file in plan.files)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / INDEX).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finished(out: Path, inputs: dict[str, Any]) -> Result | None:
    """What an earlier, identical run made, if its files still have their hashes."""
    if not (out / MANIFEST).is_file():
        return None
    data = read_json(out / MANIFEST, "manifest")
    if not isinstance(data, dict) or data.get("kind") != KIND or data.get("inputs") != inputs:
        return None
    import xxhash

    for name, entry in data["files"].items():
        with (out / name).open("rb") as file:
            hasher = xxhash.xxh3_128()
            while block := file.read(8 << 20):
                hasher.update(block)
        if hasher.hexdigest() != entry["xxh3_128"]:
            raise CheckpointError(
                f"{out / name} was changed after it was made",
                expected=entry["xxh3_128"],
                actual=hasher.hexdigest(),
                remedy="remove the directory and run again",
            )
    return _result(data["facts"], kept=True)


def _result(facts: dict[str, Any], *, kept: bool) -> Result:
    short = {key: value for key, value in facts.items() if key != "relative_error_by_matrix"}
    return Result(short, facts["relative_error_by_matrix"], kept)
