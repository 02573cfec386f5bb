"""`merge`: statistics of one model over disjoint documents as one, equal to a single run over all of them.

Sums add up, maxima keep the larger value. The norm of a mean vector can do neither, because the vectors are not stored:
such a field is left out and listed in `metadata["left_out"]`, unless no class is in more than one run. A class that a
run does not have counts as zero there.
Invariants: whatever could make the result differ from a single run is refused (another model, window, type or number of
shards, a document in two runs). The order of the runs changes only the order of lists and classes, and the last bits of
sums of more than two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.positions import kinds_of, with_kinds
from trimoe.errors import StatsError

_SAME = ("window", "dtype", "shards", "moe_layers")
"""Entries of the metadata that must be equal wherever they are recorded."""
_ADDED = (
    "tokens",
    "positions",
    "documents",
    "windows",
    "nonfinite",
    "masked_tokens",
    "masked_outputs",
    "repeated_documents",
    "long_documents",
    "cut_tokens",
    "unmeasured_documents",
    "skipped_tokens",
)
"""Counts: numbers, or dicts and lists of numbers, added element by element."""
_JOINED = ("document_hashes", "sources")
"""class -> list: the lists are concatenated."""
_PER_RUN = ("set", "set_name", "replies", "leak_check")
"""A list with one value per run, null where a run has none."""


def merge(parts: Sequence[ExpertStats]) -> ExpertStats:
    """Merge the statistics of several runs; see the module's docstring. Raises `StatsError` if they do not fit
    together, or if a document is in two of them."""
    kinds = tuple(dict.fromkeys(kind for part in parts for kind in kinds_of(part) or ()))
    hashes = [part.content_hash for part in parts]
    if len(set(hashes)) < len(hashes):
        raise StatsError(
            "the same statistics are given twice", expected="runs over disjoint documents", remedy="list each file once"
        )
    parts = [with_kinds(part, kinds) for part in parts]
    first = parts[0]
    try:
        for part in parts[1:]:
            _require_alike(first, part)
        _require_disjoint(parts)
        metadata = _metadata([part.metadata for part in parts])
    except (AttributeError, TypeError) as exc:  # metadata is JSON of any form: never trusted
        raise StatsError(
            "the metadata of a run is damaged",
            expected="what `trimoe calibrate` writes",
            actual=str(exc)[:200],
            remedy="make the file again",
        ) from exc
    if len(parts) == 1:
        return ExpertStats(first.classes, dict(first.fields), {**first.metadata, "merged": hashes}, dict(first.wide))
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    shared = any(sum(name in part.classes for part in parts) > 1 for name in classes)
    rules = {name: _rule(name, first) for name in first.fields}
    everywhere = set(first.fields).intersection(*(part.fields for part in parts))
    kept = [name for name in first.fields if name in everywhere and not (rules[name] == "none" and shared)]
    fields = {name: _combine([(p.classes, p.fields[name]) for p in parts], classes, rules[name]) for name in kept}
    wide = {name: _combine([(p.classes, p.wide[name]) for p in parts], classes, "sum") for name in first.wide}
    metadata["merged"] = hashes
    lost = {name for part in parts for name in part.metadata.get("left_out", [])} | (
        {name for part in parts for name in part.fields} - set(kept)
    )
    if lost:
        metadata["left_out"] = sorted(lost)
    return ExpertStats(classes, fields, metadata, wide)


def _rule(name: str, stats: ExpertStats) -> str:
    """sum, max or none."""
    recorded = stats.metadata.get("merge", {})
    rule = recorded.get(name, "max" if name.endswith("_max") else "sum") if isinstance(recorded, dict) else "sum"
    if rule not in ("sum", "max", "none"):
        raise StatsError(
            f"field {name} merges by an unknown rule",
            expected="sum, max or none",
            actual=str(rule)[:50],
            remedy="upgrade trimoe, or make the file again",
        )
    return str(rule)


def _merging(stats: ExpertStats) -> list[str]:
    """The fields that can be merged; of the others, a run may have some that another has not."""
    return sorted(name for name in stats.fields if _rule(name, stats) != "none")


def _require_alike(first: ExpertStats, part: ExpertStats) -> None:
    one, other = first.metadata, part.metadata
    pairs: list[tuple[str, Any, Any]] = [("models", one.get("model"), other.get("model"))]
    pairs += [("shape", first.shape[1:], part.shape[1:])]
    pairs += [(key, one[key], other[key]) for key in _SAME if key in one and key in other]
    pairs += [("fields", _merging(first), _merging(part))]
    pairs += [("wide fields", _widths(first), _widths(part))]
    rules = [{name: _rule(name, stats) for name in _merging(stats)} for stats in (first, part)]
    pairs += [("merge rules", rules[0], rules[1])]
    for what, wanted, found in pairs:
        if wanted != found:
            raise StatsError(
                f"statistics of different {what} cannot be merged",
                expected=str(wanted)[:200],
                actual=str(found)[:200],
                remedy="merge runs of one model with the same settings",
            )


def _widths(stats: ExpertStats) -> list[tuple[str, int]]:
    return sorted((name, array.shape[-1]) for name, array in stats.wide.items())


def _require_disjoint(parts: Sequence[ExpertStats]) -> None:
    """Raise `StatsError` for a document that two runs measured in the same class: its tokens would count twice."""
    seen: dict[tuple[str, str], int] = {}
    for number, part in enumerate(parts):
        recorded = part.metadata.get("document_hashes")
        own = {name: recorded.get(name, []) for name in part.classes} if isinstance(recorded, dict) else {}
        for name, hashes in own.items():
            both = [digest for digest in dict.fromkeys(hashes) if seen.get((name, digest), number) != number]
            if both:
                raise StatsError(
                    f"runs {seen[name, both[0]] + 1} and {number + 1} measured the same documents",
                    expected="disjoint documents",
                    actual=f"{len(both)} of class {name}, the first is {both[0]}",
                    remedy="calibrate again on other documents (`skip` and `limit` in the set file), or leave one run "
                    "out",
                )
            seen |= {(name, digest): number for digest in hashes}


def _combine(parts: Sequence[tuple[tuple[str, ...], np.ndarray]], classes: tuple[str, ...], how: str) -> np.ndarray:
    """Arrays [class of the part, ...] as one [class, ...]; maxima are of norms, so zero is neutral for them too."""
    result = np.zeros((len(classes), *parts[0][1].shape[1:]))
    for own, array in parts:
        for i, name in enumerate(own):
            at = classes.index(name)
            result[at] = np.maximum(result[at], array[i]) if how == "max" else result[at] + array[i]
    return result


def _metadata(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of the merged run: equal values stay, others follow the tables above or become a list with one per
    run."""
    result: dict[str, Any] = {}
    for key in sorted({key for metadata in every for key in metadata} - {"merged", "left_out"}):
        present = [m[key] for m in every if key in m]
        names = dict.fromkeys(name for value in present if isinstance(value, dict) for name in value)
        if key in (*_JOINED, "bench_items") and not all(isinstance(value, dict) for value in present):
            raise TypeError(f"{key} is not a mapping")
        if key in _ADDED:
            result[key] = _added(present)
        elif key in _JOINED:
            result[key] = {name: [x for value in present for x in value.get(name, [])] for name in names}
        elif key == "bench_items":
            result[key] = {n: sorted({x for value in present for x in value.get(n, [])}) for n in sorted(names)}
        elif key in _PER_RUN:
            # A run that was itself merged has a list with one value per run already.
            lists = [m[key] if "merged" in m and isinstance(m.get(key), list) else [m.get(key)] for m in every]
            result[key] = [x for values in lists for x in values]
        else:
            values = [m.get(key) for m in every]
            result[key] = values[0] if all(v == values[0] for v in values) else values
    return result


def _added(values: Sequence[Any]) -> Any:
    if all(type(v) is int for v in values):
        return sum(values)
    if all(isinstance(v, dict) for v in values):
        return {key: _added([v[key] for v in values if key in v]) for key in sorted({k for v in values for k in v})}
    if all(isinstance(v, list) and len(v) == len(values[0]) for v in values):
        return [_added(list(row)) for row in zip(*values, strict=True)]
    raise StatsError(
        "statistics whose metadata hold counts of different forms cannot be merged",
        actual=str(values)[:200],
        expected="counts of the same form",
        remedy="make the files with the same version",
    )
