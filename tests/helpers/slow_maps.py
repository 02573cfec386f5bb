"""Drop maps by section 5 of the protocol, one expert at a time, in plain Python without numpy and without trimoe.

The slow second implementation behind the golden maps: it reads the reference JSON layout itself and takes every
parameter of a recipe spelled out in numbers, so it shares neither code nor recipe files with the package.
"""

import gzip
import json
import math
from pathlib import Path
from statistics import median
from typing import Any

Row = list[float]
"""A value per expert."""
Table = dict[str, list[Row]]
"""class -> layer -> expert -> value."""


def read(path: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """class -> layer -> entries in the order of their ids."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    return {
        name: [sorted(layers[str(n)], key=lambda entry: entry["id"]) for n in range(len(layers))]
        for name, layers in data["categories"].items()
    }


def slow_map(stats: dict, base: dict, case: dict[str, Any]) -> dict[str, Any]:
    """{"drop": {layer: ids}, "floors": counts or None} of one case; `base` holds the generic classes."""
    weights, keep = case["weights"], case["keep"]
    used = {name: layers for name, layers in stats.items() if name in weights}
    scored = raw(pool(used) if case.get("pooled") else used, case)
    vector = [1.0] if case.get("pooled") else [weights[name] for name in scored]
    layers, experts = len(next(iter(scored.values()))), len(next(iter(scored.values()))[0])
    pooled = best_class = None
    if "floor" in case or "class_min" in case:
        owned = raw(base, {**case, "criterion": "contribution"})
        pooled = [[max(owned[c][n][e] for c in owned) for e in range(experts)] for n in range(layers)]
        best_class = [[max(owned, key=lambda c: owned[c][n][e]) for e in range(experts)] for n in range(layers)]
    floors = case.get("floors")
    if "floor" in case and floors is None:
        assert pooled is not None
        floors = spread([sum(sorted(row, reverse=True)[:keep]) / keep for row in pooled], *case["floor"])
    drop = {}
    for n in range(layers):
        normal = [normalised(scored[c][n], case["normalize"]) for c in scored]
        score = [aggregate([row[e] for row in normal], vector, case) for e in range(experts)]
        by_score = descending(score)
        pinned = set(by_score[: case["protect_top"]])
        if floors is not None:
            assert pooled is not None
            pinned |= set(descending(pooled[n])[: floors[n]])
            if len(pinned) > keep:
                pinned = set([e for e in descending(pooled[n]) if e in pinned][:keep])
        elif len(pinned) > keep:
            pinned = set([e for e in by_score if e in pinned][:keep])
        gone = [e for e in ascending(score) if e not in pinned][: experts - keep]
        if "class_min" in case:
            assert best_class is not None
            gone = with_minimum(gone, pinned, score, best_class[n], case["class_min"])
        drop[str(n)] = sorted(with_pins(gone, score, case.get("force_keep", {}).get(str(n), [])))
    return {"drop": drop, "floors": floors}


def pool(stats: dict) -> dict:
    """One class: every number summed over all classes."""
    layers = list(zip(*stats.values(), strict=True))
    return {
        "all": [
            [
                {key: sum(float(entry[key]) for entry in same) for key in same[0] if key != "id"}
                for same in zip(*layer, strict=True)
            ]
            for layer in layers
        ]
    }


def raw(stats: dict, case: dict[str, Any]) -> Table:
    """Raw scores, outlier cells imputed row by row."""

    def score(entry: dict[str, Any]) -> float:
        how = case.get("criterion", "contribution")
        if how == "contribution":
            return float(case.get("alpha", 2.0) * entry["wnorm"] + entry["tc"])
        if how == "reap":
            return float(entry["reap_sum"] / entry["tc"]) if entry["tc"] else 0.0
        return float(entry[{"frequency": "tc", "ean": "ean_sum", "wnorm": "wnorm"}[how]])

    table: Table = {}
    for name, layers in stats.items():
        table[name] = []
        for entries in layers:
            row = [score(entry) for entry in entries]
            if "outliers" in case and case.get("criterion", "contribution") != "frequency":
                limit = case["outliers"]["wnorm_above"]
                bad = [not (math.isfinite(e["wnorm"]) and abs(e["wnorm"]) <= limit) for e in entries]
                sound = [value for value, broken in zip(row, bad, strict=True) if not broken]
                fill = {"median": median(sound), "zero": 0.0, "drop": min(sound) - 1.0}[case["outliers"]["mode"]]
                row = [fill if broken else value for value, broken in zip(row, bad, strict=True)]
            table[name].append(row)
    return table


def normalised(row: Row, how: str) -> Row:
    """rank, mean or none."""
    if how == "mean":
        middle = math.fsum(row) / len(row)
        return [value / middle for value in row]
    if how == "rank":
        place = {expert: rank for rank, expert in enumerate(ascending(row))}
        return [place[e] / (len(row) - 1) for e in range(len(row))]
    return row


def aggregate(values: Row, weights: Row, case: dict[str, Any]) -> float:
    """The aggregate of one expert's weighted classes, plus the breadth bonus."""
    weighted = [w * r for w, r in zip(weights, values, strict=True)]
    total = {
        "max": lambda: max(weighted),
        "sum": lambda: sum(weighted),
        "mean": lambda: sum(weighted) / len(weighted),
        "lp4": lambda: sum(w * r**4 for w, r in zip(weights, values, strict=True)) ** 0.25,
        "softmax_t4": lambda: math.log(sum(math.exp(4 * v) for v in weighted)) / 4,
        "second": lambda: sorted(weighted)[-2],
        "top3mean": lambda: sum(sorted(weighted, reverse=True)[:3]) / 3,
        "geomean": lambda: math.exp(
            sum(w * math.log(max(r, 1e-12)) for w, r in zip(weights, values, strict=True)) / sum(weights)
        ),
    }[case["aggregate"]]()
    return total + case.get("breadth_bonus", 0.0) * (sum(values) / len(values))


def spread(values: Row, low: int, high: int) -> list[int]:
    """Values rescaled linearly to whole numbers from `low` to `high`."""
    least, most = min(values), max(values)
    return [round(low + (high - low) * (v - least) / (most - least)) for v in values]


def with_minimum(gone: list[int], pinned: set[int], score: Row, best: list[str], minimum: dict[str, int]) -> list[int]:
    """Dropped ids after the swaps of the class minimum; `best` is the best class of each expert."""
    gone = list(gone)

    def left(name: str) -> int:
        return sum(1 for e in range(len(score)) if e not in gone and best[e] == name)

    for name, least in minimum.items():
        while left(name) < least:
            back = [e for e in descending(score) if e in gone and best[e] == name]
            out = [
                e
                for e in ascending(score)
                if e not in gone and e not in pinned and best[e] != name and left(best[e]) > minimum.get(best[e], -1)
            ]
            if not back or not out:
                break
            gone[gone.index(back[0])] = out[0]
    return gone


def with_pins(gone: list[int], score: Row, pins: list[int]) -> list[int]:
    """Dropped ids after the final override."""
    gone = list(gone)
    for pin in pins:
        if pin in gone:
            gone[gone.index(pin)] = next(e for e in ascending(score) if e not in gone and e not in pins)
    return gone


def ascending(row: Row) -> list[int]:
    """Ids from the lowest value up; among equals the lower id first."""
    return sorted(range(len(row)), key=lambda e: (row[e], e))


def descending(row: Row) -> list[int]:
    """Ids from the highest value down; among equals the lower id first."""
    return sorted(range(len(row)), key=lambda e: (-row[e], e))
