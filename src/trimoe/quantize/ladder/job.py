"""One tier of a ladder: its llama-quantize call, the predicted result, and the check of the actual one.

Before: the request with its map of tensor types, the predicted size, and llama-quantize's own dry run, which must agree
with the prediction tensor by tensor. After: the file must have the predicted size and types, and answer prompts.
"""

import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import BadInput, Refused
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_bytes, sha256_json
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.watch import Watch
from trimoe.llamacpp.children import bound
from trimoe.llamacpp.tools import LlamaCpp, last_lines
from trimoe.model.gguf.file import open_gguf
from trimoe.quantize.ladder.dynamic import (
    OverrideReport,
    Ranking,
    explain_overrides,
    map_text,
    normal,
    overrides_of,
    provenance,
    require_fresh,
)
from trimoe.quantize.ladder.manifest import make, reuse, rewrite
from trimoe.quantize.ladder.smoke import Standard, departure
from trimoe.quantize.types.blueprint import Blueprint
from trimoe.quantize.types.sizes import Size, predict
from trimoe.quantize.types.tensor_types import PLAIN, Request
from trimoe.quantize.types.tiers import Tier

KIND = "gguf-tier"
_DRY = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[[^\]]*\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?", re.M
)


@dataclass(frozen=True)
class Job:
    """A planned tier of one model. `imatrix` is the name of the imatrix in the output folder, if the tier uses it."""

    tier: Tier
    request: Request
    size: Size
    out: Path
    inputs: dict[str, Any]
    imatrix: str | None
    map_file: Path | None = None
    report: OverrideReport | None = None


def plan_job(
    blueprint: Blueprint, tier: Tier, out: Path, *, imatrix: str | None, about_imatrix: int, ranking: Ranking | None
) -> Job:
    """Predict a tier. Refuses tensors that could only stay at 16 bits. `inputs` is left empty."""
    overrides: tuple[tuple[str, str], ...] = ()
    if tier.dynamic is not None:
        if ranking is None:
            raise BadInput(
                f"tier {tier.name} needs a ranking of layers",
                expected="an imatrix or --layer-ranking",
                actual="neither",
                remedy="give --imatrix, --calibration or --layer-ranking",
            )
        overrides = overrides_of(tier, ranking, [t.name for t in blueprint.tensors])
    request = tier.request(normal(overrides), imatrix=imatrix is not None)
    size = predict(blueprint.tensors, blueprint.facts, blueprint.metadata, request, about_imatrix)
    refuse_f16(size, tier.name)
    report = explain_overrides(request.overrides, size.choices) if overrides else None
    map_file = out.with_name(out.name.removesuffix(".gguf") + ".tensor-types.txt") if overrides else None
    used = imatrix if request.imatrix else None
    return Job(tier, request, size, out, {}, used, map_file, report)


def refuse_f16(size: Size, tier: str) -> None:
    """Refuse rows that no block type divides: llama-quantize would leave them at F16 without a summary."""
    for choice in size.choices:
        if choice.dtype == "F16" and choice.wanted not in PLAIN:
            raise Refused(
                f"tensor {choice.tensor.name} cannot be quantized to {choice.wanted} or any smaller block type",
                expected="rows of a multiple of 32 values",
                actual=f"rows of {choice.tensor.row}",
                remedy=f"llama.cpp would keep it at F16; leave tier {tier} out",
            )


def inputs_of(job: Job, base: str, imatrix_sha256: str | None, llamacpp: str) -> dict[str, Any]:
    """Everything that the file's bytes depend on."""
    return {
        "base": base,
        "tier": job.tier.name,
        "file_type": job.request.file_type,
        "llamacpp": llamacpp,
        "token_embedding": job.request.token_embedding,
        "output": job.request.output,
        "overrides": sha256_json([list(pair) for pair in job.request.overrides]) if job.request.overrides else None,
        "imatrix": imatrix_sha256 if job.imatrix else None,
    }


def write_map(job: Job, ranking: Ranking) -> None:
    """Write the job's --tensor-type-file and its sidecar. Raises `Refused` for an existing pair that is stale."""
    assert job.map_file is not None
    assert job.report is not None
    text = map_text(overrides_of(job.tier, ranking, [c.tensor.name for c in job.size.choices]))
    sidecar = job.map_file.with_name(job.map_file.name + ".json")
    if job.map_file.exists():
        require_fresh(read_json(sidecar, "sidecar"), job.map_file.read_bytes(), ranking)
        return
    write_json(sidecar, provenance(job.tier, ranking, text, job.report), overwrite=True)
    with publish_file(job.map_file) as temporary:
        temporary.write_text(text)


def command(tools: LlamaCpp, job: Job, base: Path, out: Path | None, threads: int, buffer_mib: int) -> list[str]:
    """The llama-quantize command of this job; without `out` a dry run. Run it in the folder of the job's output."""
    words = [str(tools.program("llama-quantize"))]
    if out is None:
        words.append("--dry-run")
    if job.imatrix is not None:
        words += ["--imatrix", job.imatrix]
    if job.map_file is not None:
        words += ["--tensor-type-file", job.map_file.name]
    for option, kind in (
        ("--token-embedding-type", job.request.token_embedding),
        ("--output-tensor-type", job.request.output),
    ):
        if kind is not None:
            words += [option, kind.lower()]
    words += ["--max-buffer-size", str(buffer_mib), str(base.absolute())]
    return [*words, *([str(out.absolute())] if out else []), job.request.file_type, str(threads)]


def cross_check(tools: LlamaCpp, job: Job, base: Path) -> None:
    """Run llama-quantize's dry run. Raises `Refused` where it does not choose the predicted type for every tensor."""
    words = command(tools, job, base, None, 1, 64)
    answer = subprocess.run(
        bound(words), cwd=job.out.parent, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    text = answer.stdout + answer.stderr
    if answer.returncode != 0:
        raise BadInput(
            f"llama-quantize cannot make tier {job.tier.name}",
            expected="a dry run that ends",
            actual=last_lines(answer.stderr),
            remedy="see its message",
        )
    found = {match[1]: (match[3] or match[2]).upper() for match in _DRY.finditer(text)}
    for choice in job.size.choices:
        if (actual := found.get(choice.tensor.name)) != choice.dtype:
            raise Refused(
                f"this llama.cpp chooses other types than predicted for tier {job.tier.name}",
                expected=f"{choice.tensor.name} as {choice.dtype}",
                actual=str(actual),
                remedy="use the pinned release (trimoe llamacpp install)",
            )


@dataclass(frozen=True)
class Resources:
    """Limits of one job: threads, and MiB of buffers in llama-quantize. They are not part of any identity."""

    threads: int
    buffer_mib: int


class Stopper:
    """Ends running programs when the work is aborted: a thread that waits for one cannot be interrupted."""

    def __init__(self) -> None:
        self._lock, self._running, self._stopped = threading.Lock(), set[subprocess.Popen[str]](), False

    def run(self, words: Sequence[str], folder: Path) -> tuple[int, str]:
        """Run a program that `stop` can end; returns (status, standard error)."""
        with self._lock:
            if self._stopped:
                return -1, "stopped"
            process = subprocess.Popen(
                bound(words),
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
        try:
            _, errors = process.communicate()
            return process.returncode, errors
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """End everything that is running and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()


def run_job(
    tools: LlamaCpp,
    job: Job,
    base: Path,
    watch: Watch,
    standard: Standard | None,
    resources: Resources,
    stopper: Stopper,
) -> tuple[dict[str, Any], bool]:
    """Make and check the job's file, or reuse a finished one; returns (facts, whether it was reused).

    `watch` is of `base`: nothing is published that was made while it changed. With a `standard` the file is compared
    with what its base says."""
    if (facts := reuse(job.out, KIND, job.inputs)) is not None:
        if standard is not None and facts.get("smoke", {}).get("asked") != standard.identity:
            facts["smoke"] = departure(tools, job.out, standard, threads=resources.threads).as_json()
            rewrite(job.out, KIND, job.inputs, facts)
        return facts, True
    with make(job.out, KIND, job.inputs) as output:
        words = command(tools, job, base, output.path, resources.threads, resources.buffer_mib)
        status, errors = stopper.run(words, job.out.parent)
        if status != 0:
            raise BadInput(
                f"llama-quantize failed at tier {job.tier.name}",
                expected="status 0",
                actual=f"{status}: {last_lines(errors)}",
                remedy="see its message",
            )
        check_file(output.path, job)
        watch.require_unchanged()
        output.facts |= {"bits_per_weight": round(job.size.bits_per_weight, 4), "types": job.size.type_mix()}
        if standard is not None:
            output.facts["smoke"] = departure(tools, output.path, standard, threads=resources.threads).as_json()
    return output.facts, False


def check_file(path: Path, job: Job) -> None:
    """Raise `Refused` unless size and types are as predicted, so that no other file is published."""
    actual = path.stat().st_size
    found = open_gguf(path)
    for choice in job.size.choices:
        info = found.index.get(choice.tensor.name)
        if info is None or info.dtype != choice.dtype:
            raise Refused(
                f"tensor {choice.tensor.name} of tier {job.tier.name} is not as planned",
                expected=choice.dtype,
                actual=info.dtype if info else "missing",
                remedy="use the pinned release (trimoe llamacpp install)",
            )
    if actual != job.size.file_bytes and job.size.exact:
        raise Refused(
            f"the file of tier {job.tier.name} has another size than predicted",
            expected=f"{job.size.file_bytes:,} bytes",
            actual=f"{actual:,} bytes",
            remedy="report this defect with the model's name",
        )


def map_sha256(job: Job) -> str | None:
    """Hash of the job's map file, if it has one."""
    return sha256_bytes(job.map_file.read_bytes()) if job.map_file is not None and job.map_file.exists() else None
