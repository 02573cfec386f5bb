"""Inputs of a ladder: unquantized base, importance matrix, layer ranking, and the base's smoke-test answers.

Each is made once and kept with a manifest; a rerun with the same inputs reuses it. Files that the user provides are
used unchanged: a GGUF base in place, an imatrix copied beside the files that are made with it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.errors import BadInput, UsageError
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_bytes, sha256_file
from trimoe.io.jsonfile import read_json, write_json
from trimoe.io.watch import Watch
from trimoe.llamacpp.tools import LlamaCpp, run_converter
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.files import watch_directory
from trimoe.model.gguf.file import find_gguf, open_gguf, parts
from trimoe.model.gguf.imatrix import Imatrix, open_imatrix
from trimoe.model.gguf.model import open_gguf_model
from trimoe.quantize.ladder.dynamic import Ranking, rank_by_file, rank_by_imatrix, rank_by_stats
from trimoe.quantize.ladder.importance import Coverage, coverage, fitted, make_imatrix, require_coverage
from trimoe.quantize.ladder.manifest import make, manifest_path, reuse
from trimoe.quantize.ladder.smoke import Smoke, Standard, passages_of, standard
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.ladder.text import calibration_text
from trimoe.quantize.types.blueprint import Blueprint, blueprint_of_gguf
from trimoe.quantize.types.sizes import DATASET_NAME, IMATRIX_NAME


@dataclass(frozen=True)
class Sources:
    """Where importances come from: an imatrix, or a calibration set to make one; and what ranks the layers."""

    imatrix: Path | None = None
    calibration: Path | None = None
    tokenizer: Path | None = None
    """Checkpoint directory for a calibration set when the model is a GGUF file."""
    layer_ranking: Path | None = None
    """JSON ranking or expert statistics; default: the imatrix."""
    allow_thin: bool = False
    """Accept an imatrix that the coverage gate would refuse."""


@dataclass(frozen=True)
class Effort:
    """Operational settings; they do not change the bytes of any file. `memory` is bytes of buffers of all jobs."""

    jobs: int = 1
    threads: int = max(1, (os.cpu_count() or 2) // 2)
    memory: int = 8 << 30


@dataclass(frozen=True)
class Base:
    """The unquantized GGUF file that the tiers are made from."""

    path: Path
    fingerprint: str
    blueprint: Blueprint
    watch: Watch
    """Made before the file was read; asked before anything made from it is published."""


@dataclass(frozen=True)
class Importance:
    """The imatrix in use, its name in the output folder, and its coverage of experts."""

    imatrix: Imatrix
    name: str
    sha256: str
    coverage: list[Coverage]
    tokens: dict[str, int] | None = None
    unknown: tuple[str, ...] = ()
    """Entries for tensors that the model does not have."""


def llamacpp_version(tools: LlamaCpp) -> str:
    """The commit of a build made by trimoe, or the version that another build reports."""
    return str((tools.info or {}).get("release", {}).get("commit") or tools.version() or "unknown")


def make_base(model: Path, out: Path, stem: str, spec: LadderSpec, tools: LlamaCpp) -> Base:
    """The base of a model: a GGUF file as it is, a checkpoint converted once into `out`."""
    if (file := find_gguf(model)) is not None:
        return _base(file)
    path, watch = out / f"{stem}-{spec.base}.gguf", watch_directory(model, "converted")
    inputs = {
        "checkpoint": open_checkpoint(model).fingerprint,
        "type": spec.base,
        "name": stem,
        "llamacpp": llamacpp_version(tools),
    }
    if reuse(path, "gguf-base", inputs) is None:
        with make(path, "gguf-base", inputs) as output:
            run_converter(tools, model, output.path, spec.base.lower())
            output.facts["tensors"] = len(open_gguf(output.path).index)
            watch.require_unchanged()
    return _base(path)


def _base(file: Path) -> Base:
    watch = Watch(file, "quantized", lambda: parts(file))
    return Base(file, open_gguf_model(file).fingerprint, blueprint_of_gguf(open_gguf(file)), watch)


def importance_of(
    model: Path, base: Base, out: Path, spec: LadderSpec, tools: LlamaCpp, sources: Sources, effort: Effort
) -> Importance | None:
    """The imatrix that `sources` ask for, checked against the model and for coverage; None without one."""
    if sources.imatrix is not None:
        path, tokens = _archive(sources.imatrix, out), None
    elif sources.calibration is not None:
        path, tokens = _measure(model, base, out, spec, tools, sources, effort)
    else:
        return None
    imatrix, unknown = fitted(open_imatrix(path), base.blueprint.tensors)
    found = coverage(imatrix)
    if not (sources.allow_thin or spec.imatrix.allow_thin):
        require_coverage(found)
    return Importance(imatrix, path.name, sha256_file(path), found, tokens, unknown)


def _archive(source: Path, out: Path) -> Path:
    """Copy a user's imatrix beside the files that are made with it."""
    path = out / (IMATRIX_NAME if not open_imatrix(source).legacy else "imatrix.dat")
    if path.exists() and sha256_file(path) != sha256_file(source):
        raise BadInput(
            f"{path} differs from {source}",
            expected="the same bytes",
            actual="it differs",
            remedy="choose another -o, or remove the files made with the old one",
        )
    if not path.exists():
        with publish_file(path) as temporary:
            temporary.write_bytes(source.read_bytes())
    return path


def _measure(
    model: Path, base: Base, out: Path, spec: LadderSpec, tools: LlamaCpp, sources: Sources, effort: Effort
) -> tuple[Path, dict[str, int]]:
    """Make the imatrix, or reuse the one made from the same base and text."""
    tokenizer = sources.tokenizer or (model if find_gguf(model) is None else None)
    if tokenizer is None:
        raise UsageError(
            "a calibration set needs the model's tokenizer",
            expected="--tokenizer DIRECTORY",
            actual="a GGUF file",
            remedy="give the checkpoint's directory, or an --imatrix",
        )
    assert sources.calibration is not None
    options = spec.imatrix
    text = calibration_text(sources.calibration, tokenizer, options.chunks * options.context)
    inputs = {
        "base": base.fingerprint,
        "text": sha256_bytes(text.text.encode()),
        "chunks": options.chunks,
        "context": options.context,
        "llamacpp": llamacpp_version(tools),
    }
    path = out / IMATRIX_NAME
    if reuse(path, "imatrix", inputs) is None:
        with make(path, "imatrix", inputs) as output:
            made = make_imatrix(
                tools,
                base.path,
                text.text,
                output.path.parent,
                chunks=options.chunks,
                context=options.context,
                threads=effort.threads,
            )
            output.facts["tokens"] = text.tokens
            assert made == output.path
            dataset = output.path.with_name(DATASET_NAME)
            with publish_file(out / DATASET_NAME, overwrite=True) as temporary:
                temporary.write_bytes(dataset.read_bytes())
    tokens: dict[str, int] = read_json(manifest_path(path), "manifest")["outputs"]["tokens"]
    return path, tokens


def ranking_of(base: Base, importance: Importance | None, sources: Sources) -> Ranking | None:
    """The layer ranking: from --layer-ranking, else from the imatrix; None without either."""
    layers = base.blueprint.facts.layers
    if sources.layer_ranking is not None:
        return read_ranking(sources.layer_ranking, layers)
    return rank_by_imatrix(importance.imatrix, layers, importance.sha256) if importance else None


def read_ranking(path: Path, layers: int) -> Ranking:
    """A ranking from expert statistics (.safetensors) or from a JSON file."""
    if path.suffix == ".safetensors":
        return rank_by_stats(ExpertStats.load(path), layers)
    return rank_by_file(path, layers)


def base_standard(
    tools: LlamaCpp, base: Base, wanted: Smoke, out: Path, threads: int, importance: Importance | None
) -> Standard:
    """What the base says to the prompts of the smoke test and to passages of the calibration text, if there is one;
    asked once and kept in out/base-answers.json."""
    path, text = out / "base-answers.json", out / DATASET_NAME
    made_here = importance is not None and importance.tokens is not None and text.is_file()
    passages = passages_of(text.read_text(encoding="utf-8")) if made_here else ()
    if path.exists():
        kept = read_json(path, "answers of the base")
        if kept.get("base") == base.fingerprint and kept.get("standard", {}).get("asked") == wanted.asked(passages):
            return Standard.from_json(kept["standard"])
    found = standard(tools, base.path, wanted, passages, threads=threads)
    write_json(path, {"base": base.fingerprint, "standard": found.as_json()}, overwrite=True)
    return found
