"""Thresholds of the audit, from `audit.toml`."""

from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from trimoe.io.datafile import Data, load

Level = Literal["notes", "refused"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Points = Annotated[float, msgspec.Meta(ge=0)]
Factor = Annotated[float, msgspec.Meta(ge=1)]


class Thresholds(Data, frozen=True, kw_only=True):
    """Thresholds; `audit.toml` documents each. Shares are of a run's samples, `_pp` are percentage points."""

    empty: Share
    short_failures: Share
    short_chars: Count
    p10_min: Count
    p50_max: Positive
    unscored: Share
    length_stops: Share
    saturated_chars: Positive
    saturated_warn: Share
    saturated_collapse: Share
    saturated_times: Factor
    duplicate_chars: Positive
    duplicates: Share
    foreign_letters: Share
    foreign: Share
    verbatim: Share
    plus_drop: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    undeclared: Share
    drift_pp: Points
    loop_regression_pp: Points
    len_bloat: Factor
    knowledge_pp: Points
    normal_failures_pp: Points
    trade_pp: Points


class BenchLimits(Data, frozen=True, kw_only=True):
    """Thresholds that differ for the benches whose name matches the pattern `match`."""

    match: str
    short_chars: Count | None = None
    p10_min: Count | None = None


class Texts(Data, frozen=True, kw_only=True):
    """Unicode scripts, and the benches whose data sets have solutions."""

    solutions: tuple[str, ...]
    scripts: tuple[str, ...]


class Rules(Data, frozen=True, kw_only=True):
    """The whole file."""

    version: Literal[1]
    limits: Thresholds
    bench: tuple[BenchLimits, ...] = ()
    levels: dict[str, Level]
    texts: Texts

    def of(self, bench: str) -> Thresholds:
        """The limits for a bench; the last matching entry wins."""
        changes: dict[str, int] = {}
        for entry in self.bench:
            if fnmatchcase(bench, entry.match):
                own = {"short_chars": entry.short_chars, "p10_min": entry.p10_min}
                changes.update({key: value for key, value in own.items() if value is not None})
        return msgspec.structs.replace(self.limits, **changes)


@cache
def rules(path: Path | None = None) -> Rules:
    """The shipped rules, or those of a file. Raises `BadInput` naming the wrong key."""
    source = path or resources.files("trimoe.judge.audit") / "audit.toml"
    return load(Rules, source, f"audit rules {path or 'audit.toml'}", remedy="see docs/reference/audit.md")
