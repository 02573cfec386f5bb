"""Early checks of a ladder: refuses whatever can be known to fail before the first expensive step."""

from collections.abc import Sequence
from pathlib import Path

from trimoe.errors import BadInput, CheckpointError, UsageError
from trimoe.io.atomic import require_space
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.gguf.file import find_gguf, open_gguf, split_stem
from trimoe.model.gguf.imatrix import open_imatrix
from trimoe.model.shards import read_index
from trimoe.quantize.ladder.dynamic import Ranking
from trimoe.quantize.ladder.importance import fitted, require_entries
from trimoe.quantize.ladder.job import plan_job
from trimoe.quantize.ladder.sources import Sources, read_ranking
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.types.blueprint import Blueprint, blueprint_of_gguf
from trimoe.quantize.types.config_blueprint import blueprint_of_config
from trimoe.quantize.types.sizes import DATASET_NAME, IMATRIX_NAME, imatrix_bytes
from trimoe.quantize.types.tensor_types import PLAIN
from trimoe.quantize.types.tiers import Tier


def refuse_early(
    model: Path, out: Path, stem: str, spec: LadderSpec, tiers: Sequence[Tier], sources: Sources, tools: LlamaCpp
) -> None:
    """Check options, programs, types, imatrix, ranking and disk space. Raises what is wrong with them."""
    for program in required_programs(spec, sources):
        tools.program(program)
    planned_files(model, out, stem, spec, tiers, sources)


def required_programs(spec: LadderSpec, sources: Sources) -> list[str]:
    """The programs of llama.cpp that a ladder runs."""
    return [
        "llama-quantize",
        *(["llama-server"] if spec.smoke else []),
        *(["llama-imatrix"] if sources.calibration else []),
    ]


def planned_files(
    model: Path, out: Path, stem: str, spec: LadderSpec, tiers: Sequence[Tier], sources: Sources
) -> list[tuple[Tier, Path, int | None]]:
    """(tier, file, predicted bytes) of each tier; None for a family without a layout, whose base must be made first.

    Raises what is wrong with options, types, imatrix, ranking or disk space.
    """
    if sources.imatrix and sources.calibration:
        raise UsageError("--imatrix and --calibration contradict each other", expected="one of them")
    if out.exists() and not out.is_dir():
        raise BadInput(
            f"{out} is not a directory",
            expected="a directory for the files",
            actual="a file",
            remedy="choose another -o",
        )
    blueprint, size = blueprint_before(model, spec)
    imatrix = open_imatrix(sources.imatrix) if sources.imatrix else None
    if imatrix is not None and blueprint is not None:
        imatrix, _ = fitted(imatrix, blueprint.tensors)
    paths = [out / f"{stem}-{tier.name}.gguf" for tier in tiers]
    if blueprint is None:
        require_space(out, size)
        return [(tier, path, None) for tier, path in zip(tiers, paths, strict=True)]
    expected = imatrix is not None or sources.calibration is not None
    ranked = expected or sources.layer_ranking is not None
    files: list[tuple[Tier, Path, int | None]] = []
    total = 0
    for tier, path in zip(tiers, paths, strict=True):
        dummy = Ranking(tuple(range(blueprint.facts.layers)), "assumed", "") if ranked else None
        job = plan_job(
            blueprint,
            tier,
            path,
            imatrix=IMATRIX_NAME if expected else None,
            about_imatrix=imatrix_bytes(IMATRIX_NAME, DATASET_NAME, 1),
            ranking=dummy,
        )
        if not (job.request.imatrix and imatrix is None):
            require_entries(job.size.choices, job.request.file_type, imatrix, tier.name)
        total += 0 if path.exists() else job.size.file_bytes
        files.append((tier, path, job.size.file_bytes))
    if sources.layer_ranking is not None:
        read_ranking(sources.layer_ranking, blueprint.facts.layers)
    base = out / f"{stem}-{spec.base}.gguf"
    require_space(out, total + (size if model.is_dir() and find_gguf(model) is None and not base.exists() else 0))
    return files


def blueprint_before(model: Path, spec: LadderSpec) -> tuple[Blueprint | None, int]:
    """(blueprint of the model before conversion, bytes of its base); no blueprint for a family without a layout."""
    if (file := find_gguf(model)) is not None:
        return blueprint_of_gguf(open_gguf(file)), file.stat().st_size
    checkpoint = open_checkpoint(model)
    factor = 2 if spec.base == "F32" else 1
    try:
        output = any(name.endswith("lm_head.weight") for name in read_index(model))
        known = blueprint_of_config(model.name, checkpoint.config, model / "tokenizer.json", output=output)
    except CheckpointError:
        known = None
    return known, checkpoint.nbytes * factor + (32 << 20)


def model_name(model: Path) -> str:
    """Default stem of output files: the directory's name, or the file's without its type."""
    if (file := find_gguf(model)) is None:
        return model.absolute().name
    stem = split_stem(file.name)
    for kind in PLAIN:
        for sign in "-._":
            stem = stem.removesuffix(sign + kind).removesuffix(sign + kind.lower())
    return stem
