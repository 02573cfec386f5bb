"""Ladder files: base type, tiers, imatrix options and smoke test of a GGUF ladder, as YAML."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from trimoe.io.datafile import Data, convert, read
from trimoe.quantize.ladder.smoke import Smoke
from trimoe.quantize.types.tiers import Tier, default_ladder, find_tiers


class ImatrixOptions(Data, frozen=True, kw_only=True):
    """How llama-imatrix runs: over `chunks` of `context` tokens."""

    chunks: Annotated[int, msgspec.Meta(ge=1)] = 128
    context: Annotated[int, msgspec.Meta(ge=32)] = 512
    allow_thin: bool = False
    """Report experts with too little data instead of refusing the imatrix."""


class LadderSpec(Data, frozen=True, kw_only=True):
    """A ladder file; `default.yaml` documents each key."""

    base: Literal["BF16", "F16", "F32"] = "BF16"
    tiers: Literal["sweep"] | tuple[str, ...] = "sweep"
    imatrix: ImatrixOptions = msgspec.field(default_factory=ImatrixOptions)
    smoke: Smoke | None = None

    def resolved(self) -> list[Tier]:
        """The tiers by name. Raises `UsageError` for an unknown one, `Refused` for one that cannot be made."""
        return default_ladder() if self.tiers == "sweep" else find_tiers(list(self.tiers))


def load_ladder_spec(path: Path | str | None = None) -> LadderSpec:
    """Read a ladder file, or the shipped default for None. Raises `BadInput` that names the invalid key."""
    source = resources.files("trimoe.quantize.ladder") / "default.yaml" if path is None else Path(path)
    what = f"ladder {path or 'default.yaml'}"
    remedy = "correct the file; the shipped default.yaml documents each key"
    return convert(read(source, what, format="yaml", remedy=remedy), LadderSpec, what, remedy=remedy)
