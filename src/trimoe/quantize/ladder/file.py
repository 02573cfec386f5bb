"""Ladders as data: base, tiers, how the imatrix is made, what each file is asked. Unknown keys are refused."""

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimoe.errors import BadInput
from trimoe.quantize.ladder.smoke import Smoke
from trimoe.quantize.types.tiers import Tier, default_ladder, find_tiers


class ImatrixOptions(BaseModel):
    """How llama-imatrix runs: `chunks` of `context` tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chunks: int = Field(128, ge=1)
    context: int = Field(512, ge=32)
    allow_thin: bool = False
    """Report experts that saw too little instead of refusing the imatrix."""


class Ladder(BaseModel):
    """A ladder file: see ladders/default.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: Literal["BF16", "F16", "F32"] = "BF16"
    tiers: Literal["sweep"] | tuple[str, ...] = "sweep"
    imatrix: ImatrixOptions = ImatrixOptions(chunks=128, context=512)
    smoke: Smoke | None = None

    def resolved(self) -> list[Tier]:
        """The tiers, found and allowed. Raises `UsageError` or `Refused`."""
        return default_ladder() if self.tiers == "sweep" else find_tiers(list(self.tiers))


def load_ladder(path: Path | None = None) -> Ladder:
    """Read a ladder file; None is the shipped one. Raises `BadInput` naming the wrong key."""
    if path is None:
        source = resources.files("trimoe.quantize.ladder") / "default.yaml"
        return _parse(source.read_text(encoding="utf-8"), "default.yaml")
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as exc:
        raise BadInput(f"ladder {path} not found", expected="a YAML file", remedy="check the path") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"ladder {path} cannot be read", actual=str(exc)[:200]) from exc


def _parse(text: str, source: str) -> Ladder:
    try:
        data: Any = yaml.safe_load(text)
        return Ladder.model_validate(data)
    except yaml.YAMLError as exc:
        raise BadInput(f"ladder {source} is not readable YAML", actual=str(exc)[:300]) from exc
    except ValidationError as exc:
        found = exc.errors(include_url=False)[0]
        raise BadInput(
            f"ladder {source} is not valid",
            expected="base, tiers, imatrix, smoke",
            actual=f"{'.'.join(str(p) for p in found['loc'])}: {found['msg']}",
            remedy="correct this key; the shipped ladder explains each one",
        ) from exc
