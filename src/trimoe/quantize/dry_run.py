"""What `quantize` would write: names and predicted sizes, without llama.cpp and without reading weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.errors import MissingPrerequisite
from trimoe.llamacpp.tools import locate
from trimoe.model.checkpoint import open_checkpoint
from trimoe.quantize.ladder.checks import model_name, planned_files, required_programs
from trimoe.quantize.ladder.sources import Sources
from trimoe.quantize.ladder.spec import LadderSpec
from trimoe.quantize.nvfp4.rules import rules
from trimoe.quantize.nvfp4.sizes import predict


@dataclass(frozen=True)
class PlannedOutput:
    """A file, or the directory of an NVFP4 checkpoint. `bytes` is None in a family whose sizes cannot be predicted
    before the model is converted."""

    tier: str
    path: Path
    bytes: int | None
    exists: bool


@dataclass(frozen=True)
class DryRun:
    """What would be made. `missing` names what must be installed first, in words."""

    outputs: tuple[PlannedOutput, ...]
    missing: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "outputs": [
                {"tier": one.tier, "path": str(one.path), "bytes": one.bytes, "exists": one.exists}
                for one in self.outputs
            ],
            "missing": self.missing,
        }


def plan_ladder(
    model: Path, out: Path, spec: LadderSpec, sources: Sources, name: str | None, llamacpp: Path | None
) -> DryRun:
    """The GGUF files of a ladder. Raises what `quantize` would raise before its work, except for missing programs."""
    stem = name or model_name(model)
    tiers = [tier for tier in spec.resolved() if tier.name != spec.base]
    files = planned_files(model, out, stem, spec, tiers, sources)
    outputs = [PlannedOutput(tier.name, path, size, path.exists()) for tier, path, size in files]
    return DryRun(tuple(outputs), _missing(llamacpp, required_programs(spec, sources)))


def plan_checkpoint(model: Path, out: Path, layout: str) -> DryRun:
    """The directory of an NVFP4 checkpoint; bytes of its weights. Raises `CheckpointError`."""
    size = predict(open_checkpoint(model), layout)
    return DryRun((PlannedOutput(rules().tier, out, size.file_bytes, out.exists()),))


def _missing(directory: Path | None, programs: Sequence[str]) -> str | None:
    try:
        tools = locate(directory)
        for program in programs:
            tools.program(program)
    except MissingPrerequisite as exc:
        return " ".join(str(exc).split())
    return None
