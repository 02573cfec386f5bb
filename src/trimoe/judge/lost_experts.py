"""Suggests which dropped experts to keep: those that the base used most on the items that a prune lost.

The base's right replies to the lost items are measured as one class of calibration text, its right replies to surviving
items as another. A dropped expert is worth keeping if it contributed more on the lost items than the least used kept
expert of its layer, and more there than on the surviving items.
Invariants: the suggestion names only dropped experts, at most as many per layer as can be swapped. Not guaranteed: that
keeping them recovers the items; evaluate the new map. Measuring needs torch, ranking does not.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.choose.dropmap import DropMap
from trimoe.errors import StatsError, UsageError
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import sha256_file
from trimoe.judge.chain import Chain
from trimoe.judge.gather import Read
from trimoe.judge.text import safe

LOST, KEPT = "lost", "kept"
FIELD = "reap_sum"  # sum of router weight times output norm: what an expert added to the residual stream
KEPT_PER_LOST = 3


@dataclass(frozen=True)
class Pin:
    """A dropped expert to keep. `lost` and `kept` are its shares of its layer's expert output on those items.

    `instead` is the least used kept expert on the lost items, with its share `instead_lost` there.
    """

    layer: int
    expert: int
    lost: float
    kept: float
    instead: int
    instead_lost: float

    @property
    def gain(self) -> float:
        """Share of output on the lost items that the swap gains."""
        return self.lost - self.instead_lost


@dataclass(frozen=True)
class Suggestion:
    """Experts to keep. `gone_lost`, `gone_kept`: the dropped experts' share of output, averaged over layers."""

    gone_lost: float
    gone_kept: float
    pins: tuple[Pin, ...]

    def as_dict(self) -> dict[str, Any]:
        """The suggestion as JSON values."""
        return {**asdict(self), "pins": [{**asdict(pin), "gain": pin.gain} for pin in self.pins]}


def write_traces(chain: Chain, runs: dict[tuple[str, str], Read], folder: Path) -> tuple[Path, int, int]:
    """Write a calibration set of two classes to `folder`; returns (set file, lost items, kept items).

    The classes are the base's right replies to items that the first step lost, and to items that survived it. Raises
    `UsageError` when nothing was lost.
    """
    base = chain.names[0]
    lost: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for bench in chain.benches:
        read, after = runs[base, bench.bench], runs[chain.names[1], bench.bench].answers
        gone = {doc for doc, _ in bench.steps[0].lost}
        for s in read.samples:
            doc = s.sample.doc_id
            row = {
                "name": base,
                "bench": bench.bench,
                "doc_id": doc,
                "correct": True,
                "prompt": s.sample.prompt,
                "reply": s.sample.reply,
                "finish_reason": s.sample.finish_reason,
            }
            if doc in gone:
                lost.append(row)
            elif s.verdict.correct and after.get(doc):
                kept.append(row)
    if not lost or not kept:
        raise UsageError(
            f"{chain.names[1]} lost {len(lost)} items of {base} and kept {len(kept)}",
            expected="some of both",
            actual="nothing to attribute",
            remedy="choose other runs",
        )
    step = max(1, len(kept) // (KEPT_PER_LOST * len(lost)))
    kept = kept[::step][: max(KEPT_PER_LOST * len(lost), 8)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((LOST, lost), (KEPT, kept)):
        with publish_file(folder / f"{name}.jsonl", overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    chosen = folder / "set.yaml"
    source = json.dumps(base, ensure_ascii=False)
    with publish_file(chosen, overwrite=True) as temporary:
        temporary.write_text(
            "name: lost-items\nclasses:\n"
            + "".join(f"  {n}: [{{kind: run-log, path: {n}.jsonl, model: {source}}}]\n" for n in (LOST, KEPT)),
            encoding="utf-8",
        )
    return chosen, len(lost), len(kept)


def measured(model: Path, chosen: Path) -> ExpertStats:
    """Statistics of the base on the traces, kept beside the set; made once per content of set and model."""
    from trimoe.calibrate.engine import calibrate
    from trimoe.model.checkpoint import open_checkpoint

    files = [sha256_file(chosen.with_name(f"{name}.jsonl")) for name in (LOST, KEPT)]
    mark = "".join(h[:8] for h in [open_checkpoint(model).fingerprint, *files])
    out = chosen.with_name(f"stats-{mark}.safetensors")
    return ExpertStats.load(out) if out.exists() else calibrate(model, chosen, out)


def suggest(stats: ExpertStats, drop: DropMap, most: int) -> Suggestion:
    """The dropped experts to keep, best first, at most `most`.

    Raises `StatsError` for statistics without the two classes, `MapError` for a map of another shape.
    """
    missing = [name for name in (LOST, KEPT) if name not in stats.classes]
    if missing:
        raise StatsError(
            f"the statistics have no class {missing[0]}",
            expected=f"{LOST} and {KEPT}",
            actual=", ".join(stats.classes),
            remedy="measure the set written here",
        )
    layers = stats.moe_layers
    _, _, experts = stats.shape
    drop.validate(len(drop.drop), experts, 0)
    if set(drop.drop) != set(layers):
        raise StatsError(
            "map and statistics have different layers",
            expected=f"{len(layers)} layers with experts",
            actual=f"{len(drop.drop)} in the map",
            remedy="give the map of this model",
        )
    lost, kept = (_shares(stats, name) for name in (LOST, KEPT))
    pins: list[Pin] = []
    for layer in layers:
        gone = sorted(drop.drop[layer], key=lambda e: (-lost[layer, e], e))
        stay = sorted(set(range(experts)) - set(gone), key=lambda e: (lost[layer, e], e))
        for expert, instead in zip(gone, stay, strict=False):
            pin = Pin(
                layer,
                expert,
                float(lost[layer, expert]),
                float(kept[layer, expert]),
                instead,
                float(lost[layer, instead]),
            )
            if pin.gain > 0 and pin.lost > pin.kept:
                pins.append(pin)
    pins.sort(key=lambda pin: (-pin.gain, pin.layer, pin.expert))
    carried = [
        float(np.mean([array[layer, list(drop.drop[layer])].sum() for layer in layers])) for array in (lost, kept)
    ]
    return Suggestion(carried[0], carried[1], tuple(pins[:most]))


def _shares(stats: ExpertStats, name: str) -> np.ndarray:
    """[layer, expert]: share of the layer's expert output on one class; zero for a layer without output."""
    values: np.ndarray = stats.field(FIELD)[stats.classes.index(name)]
    total = values.sum(1, keepdims=True)
    shares: np.ndarray = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares


def force_keep(suggestion: Suggestion, names: Sequence[str]) -> str:
    """Content of a file for `trimoe map --force-keep`. Names are escaped, so none can end its comment."""
    lines = [
        f"# dropped experts that {safe(names[0])} used most on items that {safe(names[1])} lost",
        "# LAYER:EXPERT, its share of expert output on lost and on surviving items, what it replaces",
    ]
    lines += [
        f"{p.layer}:{p.expert}  # {100 * p.lost:.2f} % lost, {100 * p.kept:.2f} % surviving; "
        f"{p.layer}:{p.instead} has {100 * p.instead_lost:.2f} %"
        for p in suggestion.pins
    ]
    return "\n".join(lines) + "\n"
