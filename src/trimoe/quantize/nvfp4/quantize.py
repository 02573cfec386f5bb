"""A checkpoint as NVFP4A16: 4-bit weights with block scales, unquantized activations; streaming, no torch.

Two passes: the largest weight of every matrix (which also finds NaN before anything is written), then codes and scales.
Invariants: memory does not grow with the model; the output appears under its name only when it is complete, its headers
have been read back and every expert in it is quantized; the same input gives the same bytes, for any number of threads
and after any number of interruptions. Not guaranteed: the quality of the model (evaluate it).
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trimoe.cut.plan import DEFAULT_SHARD
from trimoe.errors import CheckpointError, Refused
from trimoe.io.atomic import RESUME, partial_bytes, publish_dir, require_absent, require_space
from trimoe.io.canonical import sha256_json
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST, write_manifest
from trimoe.io.progress import Progress
from trimoe.io.writing import write_files
from trimoe.model.checkpoint import Checkpoint, open_checkpoint
from trimoe.model.files import METADATA, other_files, watch_directory, weight_stamps
from trimoe.model.shards import read_index
from trimoe.quantize.nvfp4.codes import FLOATS
from trimoe.quantize.nvfp4.config import small_files
from trimoe.quantize.nvfp4.errors import ErrorSums, summary
from trimoe.quantize.nvfp4.plan import Plan, plan_nvfp4
from trimoe.quantize.nvfp4.rules import rules, rules_hash
from trimoe.quantize.nvfp4.sizes import size_of_plan
from trimoe.quantize.nvfp4.write import append_file, largest_weights, write_index
from trimoe.quantize.replies import recorded_replies

KIND = "NVFP4 checkpoint"
REPLIES = "replies"


@dataclass(frozen=True)
class Result:
    """`facts` for the table, relative errors by matrix, and whether the output was already finished before."""

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
    replies: bool | None = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize the checkpoint `model` into the new directory `out`; see `plan_nvfp4` for what is refused.

    Output of an interrupted run of the same job is verified and resumed; a finished one is verified and kept. `replies`
    says whether the manifest records greedy replies of the result (see `recorded_replies`). Raises
    the errors of `plan_nvfp4` and, before anything is written, `CheckpointError` for weights that are not finite and
    `MissingPrerequisite` for lack of space.
    """
    out, threads = Path(out), threads or os.cpu_count() or 1
    watch, stamps = watch_directory(model, "quantized"), weight_stamps(model)
    checkpoint = open_checkpoint(model)
    plan = plan_nvfp4(checkpoint, layout, max_shard)
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
    files, _ = other_files(checkpoint.path, checkpoint.index)
    small = small_files(checkpoint.path, plan)
    needed = size_of_plan(plan).file_bytes + sum(file.stat().st_size for file in files) + (4 << 20)
    require_space(out, needed - partial_bytes(out))
    identity = sha256_json({"inputs": inputs, "stamps": stamps})
    with ThreadPoolExecutor(threads) as pool, publish_dir(out, sync=sync, identity=identity) as folder:
        largest = largest_weights(plan, pool, threads, folder / RESUME / "largest.json", progress)
        errors = ErrorSums(folder / RESUME / "errors")
        jobs = {
            file.name: (len(file.header) + file.nbytes, partial(append_file, file, largest, errors, pool, threads))
            for file in plan.files
        }
        written = write_files(folder, jobs, progress=progress)
        write_index(folder, plan)
        _copy_small(checkpoint, files, small, folder)
        facts = {**_facts(plan, errors), REPLIES: recorded_replies(folder, replies)}
        hashes = {
            name: {"bytes": (folder / name).stat().st_size, "xxh3_128": digest}
            for name, digest in sorted(written.digests.items())
        }
        write_manifest(folder, KIND, inputs, hashes, facts)
        verify(folder, plan)
        watch.require_unchanged()
    return _result(facts, kept=False)


def _copy_small(checkpoint: Checkpoint, files: list[Path], small: dict[str, bytes], folder: Path) -> None:
    """Copy tokenizer and similar files, and write those that describe the quantization."""
    for file in files:
        target = folder / file.relative_to(checkpoint.path)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if (record := checkpoint.path / METADATA).is_file():
        shutil.copyfile(record, folder / METADATA)
    for name, content in small.items():
        (folder / name).write_bytes(content)


def _facts(plan: Plan, errors: ErrorSums) -> dict[str, Any]:
    size = size_of_plan(plan)
    relative = {matrix.name: errors.relative(matrix.name) for matrix in plan.matrices}
    return {
        "file_bytes": size.file_bytes,
        "tensor_bytes": size.tensor_bytes,
        "values": size.values,
        "quantized_values": size.quantized_values,
        "bits_per_weight": round(size.bits_per_weight, 4),
        "matrices": len(plan.matrices),
        "relative_error": summary(relative, errors),
        "relative_error_by_matrix": relative,
    }


def verify(folder: Path, plan: Plan) -> None:
    """Read the written headers back: everything as planned, no file too short, no expert unquantized.

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
                actual=tensor.info.dtype,
                remedy="report this defect",
            )


def _finished(out: Path, inputs: dict[str, Any]) -> Result | None:
    """The result of an earlier, identical run. Raises `CheckpointError` if its files have changed."""
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
    short = {key: value for key, value in facts.items() if key not in ("relative_error_by_matrix", REPLIES)}
    return Result(short, facts["relative_error_by_matrix"], kept)
