"""The whole ladder from one call: base, imatrix, tiers; everything checked before, every file checked after.

Invariants: what can be refused is refused before the first expensive step; a file appears under its name only with the
predicted size and types; a rerun of the same command keeps what is finished (same inputs, same sha256) and makes the
rest; threads, jobs and memory do not change a byte.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimoe.artifact import publish_file, read_json, require_space, sha256_bytes, sha256_file, write_json
from trimoe.errors import BadInput, CheckpointError, UsageError
from trimoe.measure.stats import ExpertStats
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.gguf import find_gguf, open_gguf, split_stem
from trimoe.model.gguf_model import open_gguf_model
from trimoe.model.imatrix import Imatrix, open_imatrix
from trimoe.model.safetensors import read_index
from trimoe.quantize.calibration_text import calibration_text
from trimoe.quantize.dynamic import Ranking, rank_by_file, rank_by_imatrix, rank_by_stats
from trimoe.quantize.importance import (
    Coverage,
    coverage,
    make_imatrix,
    require_coverage,
    require_entries,
    require_fit,
)  # fmt: skip
from trimoe.quantize.ladder_file import Ladder
from trimoe.quantize.layout import Blueprint, blueprint_of_config, blueprint_of_gguf
from trimoe.quantize.llamacpp import LlamaCpp, run_converter
from trimoe.quantize.quantizing import (
    Job,
    Resources,
    Stopper,
    cross_check,
    inputs_of,
    map_sha256,
    plan_job,
    run_job,
    write_map,
)  # fmt: skip
from trimoe.quantize.record import make, manifest_path, reuse
from trimoe.quantize.sizes import DATASET_NAME, IMATRIX_NAME, bytes_about, imatrix_bytes
from trimoe.quantize.tiers import Tier
from trimoe.quantize.type_rules import PLAIN

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sources:
    """Where importances come from: an imatrix, or a calibration set to make one with; and what ranks the layers."""

    imatrix: Path | None = None
    calibration: Path | None = None
    tokenizer: Path | None = None
    """Checkpoint directory for a calibration set when the model is a GGUF file."""
    layer_ranking: Path | None = None
    """JSON ranking or expert statistics; default: the imatrix."""
    allow_thin: bool = False
    """Go on with an imatrix that the coverage gate would refuse."""


@dataclass(frozen=True)
class Effort:
    """Operational settings: they change no byte of any file."""

    jobs: int = 1
    threads: int = max(1, (os.cpu_count() or 2) // 2)
    memory: int = 8 << 30


@dataclass(frozen=True)
class _Base:
    """The unquantized GGUF that everything is made from."""

    path: Path
    fingerprint: str
    blueprint: Blueprint


@dataclass(frozen=True)
class _Importance:
    """The imatrix in use, its name in the folder, and what the gate found."""

    imatrix: Imatrix
    name: str
    sha256: str
    coverage: list[Coverage]
    tokens: dict[str, int] | None = None


def make_ladder(
    model: Path, out: Path, ladder: Ladder, tools: LlamaCpp, *, sources: Sources | None = None,
    effort: Effort | None = None, name: str | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make every tier of a ladder in `out`; returns the table (also written to out/ladder.json)."""
    sources, effort, report = sources or Sources(), effort or Effort(), progress or _silent
    tiers = [tier for tier in ladder.resolved() if tier.name != ladder.base]  # the base is a rung already
    stem = name or model_name(model)
    refuse_early(model, out, stem, ladder, tiers, sources, tools)
    out.mkdir(parents=True, exist_ok=True)
    report(0, len(tiers) + 2, "base")
    base = _base(model, out, stem, ladder, tools)
    report(1, len(tiers) + 2, "imatrix")
    importance = _importance(model, base, out, ladder, tools, sources, effort)
    ranking = _ranking(base, importance, sources)
    jobs = plan_jobs(base.blueprint, out, stem, tiers, importance, ranking)
    version = llamacpp_version(tools)
    jobs = [
        replace(j, inputs=inputs_of(j, base.fingerprint, importance.sha256 if importance else None, version))
        for j in jobs
    ]
    require_space(out, sum(job.size.file_bytes for job in jobs if not job.out.exists()))
    for job in jobs:
        if job.map_file is not None and ranking is not None:
            write_map(job, ranking)
        if not job.out.exists():
            cross_check(tools, job, base.path)
    rows = _run(tools, jobs, base, ladder, effort, lambda done, note: report(done + 2, len(tiers) + 2, note))
    table = {
        "model": stem, "base": {"file": base.path.name, "fingerprint": base.fingerprint},
        "imatrix": importance and {
            "file": importance.name, "sha256": importance.sha256, "tokens": importance.tokens,
            "thin_layers": {str(c.layer): round(c.share, 4) for c in importance.coverage if c.thin},
        },
        "llamacpp": tools.info or {"version": tools.version()}, "files": rows, "findings": findings(rows),
    }  # fmt: skip
    write_json(out / "ladder.json", {**table, "files": [{k: v for k, v in r.items() if k != "kept"} for r in rows]},
               overwrite=True)  # fmt: skip
    return table


def refuse_early(
    model: Path, out: Path, stem: str, ladder: Ladder, tiers: Sequence[Tier], sources: Sources, tools: LlamaCpp
) -> None:
    """Everything that can be known to fail before the first expensive step."""
    if sources.imatrix and sources.calibration:
        raise UsageError("--imatrix and --calibration contradict each other", expected="one of them")
    for program in ("llama-quantize", *(["llama-server"] if ladder.smoke else []),
                    *(["llama-imatrix"] if sources.calibration else [])):  # fmt: skip
        tools.program(program)
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is not a directory", expected="a directory to write the files to")
    blueprint, size = blueprint_before(model, ladder)
    imatrix = open_imatrix(sources.imatrix) if sources.imatrix else None
    if imatrix is not None and blueprint is not None:
        require_fit(imatrix, blueprint.tensors)
    if blueprint is None:
        require_space(out, size)
        return
    expected = imatrix is not None or sources.calibration is not None
    ranked = expected or sources.layer_ranking is not None
    total = 0
    for tier in tiers:
        dummy = Ranking(tuple(range(blueprint.facts.layers)), "assumed", "") if ranked else None
        path = out / f"{stem}-{tier.name}.gguf"
        job = plan_job(blueprint, tier, path, imatrix=IMATRIX_NAME if expected else None,
                       about_imatrix=imatrix_bytes(IMATRIX_NAME, DATASET_NAME, 1), ranking=dummy)  # fmt: skip
        if not (job.request.imatrix and imatrix is None):
            require_entries(job.size.choices, job.request.file_type, imatrix, tier.name)
        total += 0 if path.exists() else job.size.file_bytes
    if sources.layer_ranking is not None:
        _read_ranking(sources.layer_ranking, blueprint.facts.layers)
    base = out / f"{stem}-{ladder.base}.gguf"
    require_space(out, total + (size if model.is_dir() and find_gguf(model) is None and not base.exists() else 0))


def blueprint_before(model: Path, ladder: Ladder) -> tuple[Blueprint | None, int]:
    """(what is known of the model before it is converted, bytes of its base). None for a family without a layout."""
    if (file := find_gguf(model)) is not None:
        return blueprint_of_gguf(open_gguf(file)), file.stat().st_size
    checkpoint = open_checkpoint(model)
    factor = 2 if ladder.base == "F32" else 1
    try:
        output = any(name.endswith("lm_head.weight") for name in read_index(model))
        known = blueprint_of_config(model.name, checkpoint.config, model / "tokenizer.json", output=output)
    except CheckpointError:
        known = None
    return known, checkpoint.nbytes * factor + (32 << 20)


def model_name(model: Path) -> str:
    """What files are called after: the directory's name, or the file's without its type."""
    if (file := find_gguf(model)) is None:
        return model.absolute().name
    stem = split_stem(file.name)
    for kind in PLAIN:
        for sign in "-._":
            stem = stem.removesuffix(sign + kind).removesuffix(sign + kind.lower())
    return stem


def llamacpp_version(tools: LlamaCpp) -> str:
    """The commit of our build, or what a foreign build says of itself."""
    return str((tools.info or {}).get("release", {}).get("commit") or tools.version() or "unknown")


def plan_jobs(
    blueprint: Blueprint, out: Path, stem: str, tiers: Sequence[Tier], importance: _Importance | None,
    ranking: Ranking | None,
) -> list[Job]:  # fmt: skip
    """A job for each tier, with sizes to the byte; refuses tiers for which the imatrix lacks entries."""
    jobs = []
    for tier in tiers:
        about = bytes_about(importance.imatrix, importance.name) if importance else 0
        job = plan_job(blueprint, tier, out / f"{stem}-{tier.name}.gguf", about_imatrix=about, ranking=ranking,
                       imatrix=importance.name if importance else None)  # fmt: skip
        have = importance.imatrix if importance and job.request.imatrix else None
        require_entries(job.size.choices, job.request.file_type, have, tier.name)
        jobs.append(job)
    return jobs


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know: files that do not end their answers, and dynamic files equal to their plain tier."""
    found = [f"{row['tier']} failed the smoke test: {row['smoke']['ended']} of {row['smoke']['asked']} prompts ended, "
             f"{row['smoke']['right']} of {row['smoke']['known']} known answers"
             for row in rows if row.get("smoke") and not row["smoke"]["passed"]]  # fmt: skip
    hashes: dict[str, str] = {}
    for row in rows:
        if row["sha256"] in hashes:
            found.append(f"{row['tier']} has the same bytes as {hashes[row['sha256']]}")
        hashes.setdefault(row["sha256"], row["tier"])
    return found


def _base(model: Path, out: Path, stem: str, ladder: Ladder, tools: LlamaCpp) -> _Base:
    if (file := find_gguf(model)) is not None:
        return _Base(file, open_gguf_model(file).fingerprint, blueprint_of_gguf(open_gguf(file)))
    path = out / f"{stem}-{ladder.base}.gguf"
    inputs = {"checkpoint": open_checkpoint(model).fingerprint, "type": ladder.base, "name": stem,
              "llamacpp": llamacpp_version(tools)}  # fmt: skip
    if reuse(path, "gguf-base", inputs) is None:
        with make(path, "gguf-base", inputs) as output:
            run_converter(tools, model, output.path, ladder.base.lower())
            output.facts["tensors"] = len(open_gguf(output.path).index)
    return _Base(path, open_gguf_model(path).fingerprint, blueprint_of_gguf(open_gguf(path)))


def _importance(
    model: Path, base: _Base, out: Path, ladder: Ladder, tools: LlamaCpp, sources: Sources, effort: Effort
) -> _Importance | None:
    if sources.imatrix is not None:
        path, tokens = _archive(sources.imatrix, out), None
    elif sources.calibration is not None:
        path, tokens = _measure(model, base, out, ladder, tools, sources, effort)
    else:
        return None
    imatrix = open_imatrix(path)
    require_fit(imatrix, base.blueprint.tensors)
    found = coverage(imatrix)
    if not sources.allow_thin:
        require_coverage(found)
    return _Importance(imatrix, path.name, sha256_file(path), found, tokens)


def _archive(source: Path, out: Path) -> Path:
    """A user's imatrix, copied beside the files that are made with it."""
    path = out / (IMATRIX_NAME if not open_imatrix(source).legacy else "imatrix.dat")
    if path.exists() and sha256_file(path) != sha256_file(source):
        raise BadInput(f"{path} is another imatrix than {source}", expected="the same bytes", actual="it differs",
                       remedy="choose another -o, or remove the files made with the old one")  # fmt: skip
    if not path.exists():
        with publish_file(path) as temporary:
            temporary.write_bytes(source.read_bytes())
    return path


def _measure(
    model: Path, base: _Base, out: Path, ladder: Ladder, tools: LlamaCpp, sources: Sources, effort: Effort
) -> tuple[Path, dict[str, int]]:
    """Make the imatrix, or find it made from the same base and text."""
    tokenizer = sources.tokenizer or (model if find_gguf(model) is None else None)
    if tokenizer is None:
        raise UsageError("a calibration set needs the model's tokenizer", expected="--tokenizer DIRECTORY",
                         actual="a GGUF file", remedy="give the checkpoint's directory, or an --imatrix")  # fmt: skip
    assert sources.calibration is not None
    options = ladder.imatrix
    text = calibration_text(sources.calibration, tokenizer, options.chunks * options.context)
    inputs = {"base": base.fingerprint, "text": sha256_bytes(text.text.encode()), "chunks": options.chunks,
              "context": options.context, "llamacpp": llamacpp_version(tools)}  # fmt: skip
    path = out / IMATRIX_NAME
    if reuse(path, "imatrix", inputs) is None:
        with make(path, "imatrix", inputs) as output:
            made = make_imatrix(tools, base.path, text.text, output.path.parent, chunks=options.chunks,
                                context=options.context, threads=effort.threads)  # fmt: skip
            output.facts["tokens"] = text.tokens
            assert made == output.path
            dataset = output.path.with_name(DATASET_NAME)
            with publish_file(out / DATASET_NAME, overwrite=True) as temporary:
                temporary.write_bytes(dataset.read_bytes())
    tokens: dict[str, int] = read_json(manifest_path(path), "manifest")["outputs"]["tokens"]
    return path, tokens


def _ranking(base: _Base, importance: _Importance | None, sources: Sources) -> Ranking | None:
    layers = base.blueprint.facts.layers
    if sources.layer_ranking is not None:
        return _read_ranking(sources.layer_ranking, layers)
    return rank_by_imatrix(importance.imatrix, layers, importance.sha256) if importance else None


def _read_ranking(path: Path, layers: int) -> Ranking:
    if path.suffix == ".safetensors":
        return rank_by_stats(ExpertStats.load(path), layers)
    return rank_by_file(path, layers)


def _run(
    tools: LlamaCpp, jobs: Sequence[Job], base: _Base, ladder: Ladder, effort: Effort,
    report: Callable[[int, str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """All jobs, some at a time; rows in the order of the ladder."""
    resources = Resources(effort.threads, max(64, effort.memory // effort.jobs >> 20))
    stopper, rows = Stopper(), {}
    with ThreadPoolExecutor(effort.jobs) as pool:
        waiting = {
            pool.submit(run_job, tools, job, base.path, ladder.smoke, resources, stopper): job for job in jobs
        }  # fmt: skip
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                job = waiting[future]
                facts, kept = future.result()
                rows[job.tier.name] = _row(job, facts, kept)
                report(done, f"{job.tier.name}{' (was finished)' if kept else ''}")
        except BaseException:
            stopper.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [rows[job.tier.name] for job in jobs]


def _row(job: Job, facts: dict[str, Any], kept: bool) -> dict[str, Any]:
    fallbacks = sum(choice.fell_back for choice in job.size.choices)
    row = {"tier": job.tier.name, "file": job.out.name, **facts, "imatrix": job.inputs["imatrix"],
           "fallback_tensors": fallbacks, "kept": kept}  # fmt: skip
    if job.report is not None:
        row["map"] = {"sha256": map_sha256(job), "no such tensor": len(job.report.unmatched),
                      "kept by llama.cpp": len(job.report.ignored), "fell back": len(job.report.fallbacks)}  # fmt: skip
    return row


def _silent(done: int, total: int, note: str = "") -> None:
    """Progress that nobody watches."""
