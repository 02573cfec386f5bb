"""The audit's thresholds, from `audit.toml`: validated on load, unknown keys refused."""

import tomllib
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimoe.errors import BadInput

Level = Literal["notes", "refused"]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(_Data):
    """Thresholds; the file says what each counts."""

    empty: float = Field(ge=0, le=1)
    short_failures: float = Field(ge=0, le=1)
    short_chars: int = Field(ge=0)
    p10_min: int = Field(ge=0)
    p50_max: int = Field(ge=1)
    unscored: float = Field(ge=0, le=1)
    length_stops: float = Field(ge=0, le=1)
    saturated_chars: int = Field(ge=1)
    saturated_warn: float = Field(ge=0, le=1)
    saturated_collapse: float = Field(ge=0, le=1)
    saturated_times: float = Field(ge=1)
    duplicate_chars: int = Field(ge=1)
    duplicates: float = Field(ge=0, le=1)
    foreign_letters: float = Field(ge=0, le=1)
    foreign: float = Field(ge=0, le=1)
    verbatim: float = Field(ge=0, le=1)
    plus_drop: float = Field(gt=0, lt=1)
    undeclared: float = Field(ge=0, le=1)
    drift_pp: float = Field(ge=0)
    loop_regression_pp: float = Field(ge=0)
    len_bloat: float = Field(ge=1)
    knowledge_pp: float = Field(ge=0)
    normal_failures_pp: float = Field(ge=0)
    trade_pp: float = Field(ge=0)


class ForBench(_Data):
    """What differs for the benches whose name matches."""

    match: str
    short_chars: int | None = Field(default=None, ge=0)
    p10_min: int | None = Field(default=None, ge=0)


class Texts(_Data):
    """Marker texts, Unicode scripts, benches with solutions of their own."""

    solutions: tuple[str, ...]
    markers: tuple[str, ...]
    scripts: tuple[str, ...]


class Rules(_Data):
    """The whole file."""

    version: Literal[1]
    limits: Limits
    bench: tuple[ForBench, ...] = ()
    levels: dict[str, Level]
    texts: Texts

    def of(self, bench: str) -> Limits:
        """The limits for a bench."""
        changes: dict[str, int] = {}
        for entry in self.bench:
            if fnmatchcase(bench, entry.match):
                changes.update({k: v for k, v in entry.model_dump().items() if k != "match" and v is not None})
        return self.limits.model_copy(update=changes)


@cache
def rules(path: Path | None = None) -> Rules:
    """The shipped rules, or those of a file. `BadInput` names the key that is wrong."""
    source = path or resources.files("trimoe.judge.audit") / "audit.toml"
    try:
        return Rules.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except OSError as exc:
        raise BadInput(f"rules {path} not readable", actual=str(exc), remedy="check the path") from exc
    except tomllib.TOMLDecodeError as exc:
        raise BadInput(f"rules {path} are not valid TOML", actual=str(exc)) from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        raise BadInput(
            f"rules {path or 'audit.toml'}: {'.'.join(map(str, first['loc']))}",
            expected="a known key with a possible value",
            actual=first["msg"],
            remedy="see docs/reference/audit.md",
        ) from exc
