"""Kinds of position: statistics over replies alone, or over any other choice of kinds.

A kind is what the model predicts at a position (`text.windows.POSITIONS`): plain text, a prompt, the model's own reply,
a recorded reply. A set with several kinds has the fields of `BY_KIND` for each, named KIND/FIELD; a set with one kind
has its totals only. Invariants: a choice that covers every position of the statistics changes nothing; a class without
a position of the chosen kinds is refused, not ranked.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import BY_KIND, kind_field
from trimoe.errors import StatsError

REPLIES = ("text", "own", "recorded")
"""The positions at which the model does its work: those that predict a reply, and in plain text every one."""


def kinds_of(stats: ExpertStats) -> tuple[str, ...] | None:
    """Kinds of position in the statistics; None where they do not say (imported, or of an older version)."""
    recorded = stats.metadata.get("positions")
    if not isinstance(recorded, dict) or set(recorded) != set(stats.classes):
        return None
    return tuple(dict.fromkeys(kind for row in recorded.values() for kind in row))


def of_positions(stats: ExpertStats, kinds: Sequence[str]) -> ExpertStats:
    """The statistics over positions of these kinds; all if `kinds` is empty. Raises `StatsError`.

    Fields that are not stored by kind are left out, unless every position is of these kinds.
    """
    present = kinds_of(stats)
    if not kinds or (present is not None and set(present) <= set(kinds)):
        return stats
    if present is None:
        raise StatsError(
            "the statistics do not tell prompts from replies",
            expected=f"sums over positions of the kinds {', '.join(kinds)}",
            actual="totals over all positions",
            remedy="calibrate again with this version, or choose a recipe for all positions (--positions all)",
        )
    counts = stats.metadata["positions"]
    for name in stats.classes:
        if not any(counts[name].get(kind) for kind in kinds):
            raise StatsError(
                f"class {name} has no position of the kinds {', '.join(kinds)}",
                expected="replies, or plain text",
                actual=", ".join(f"{n} {kind}" for kind, n in counts[name].items()) or "no position",
                remedy="let the model answer the prompts (a source of kind prompts), or use --positions all",
            )
    chosen = [kind for kind in present if kind in kinds]
    fields: dict[str, np.ndarray] = {}
    for prefix in ("", *sorted({name.partition("/")[0] + "/" for name in stats.fields if name.startswith("shard")})):
        for name in BY_KIND:
            if parts := [a for kind in chosen if (a := stats.fields.get(prefix + kind_field(kind, name))) is not None]:
                fields[prefix + name] = np.sum(parts, axis=0)
    return ExpertStats(stats.classes, fields, {**stats.metadata, "chosen_positions": chosen})


def with_kinds(stats: ExpertStats, kinds: Sequence[str]) -> ExpertStats:
    """The statistics with fields for each of these kinds: zeros for those that do not occur. Statistics that do not say
    which kinds they have are returned unchanged."""
    present = kinds_of(stats)
    if present is None or len(kinds) < 2:
        return stats
    fields = dict(stats.fields)
    prefixes = ("", *sorted({n.partition("/")[0] + "/" for n in fields if n.startswith("shard")}))
    for kind in kinds:
        for prefix in prefixes:
            for name in BY_KIND:
                total: Any = stats.fields.get(prefix + name)
                if total is not None and prefix + kind_field(kind, name) not in fields:
                    own = total if present == (kind,) else np.zeros_like(total)
                    fields[prefix + kind_field(kind, name)] = own
    return replace(stats, fields=fields)
