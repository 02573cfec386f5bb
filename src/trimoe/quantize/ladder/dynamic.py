"""ContribDynamic tiers: more bits for the layers that contribute most.

A layer ranking becomes a type for every tensor, written as a map file. Contribution per layer comes from an importance
matrix (mean squared input, summed over the layer's tensors), from expert statistics (total weighted output norm), or
from a file. The map file is llama-quantize's --tensor-type-file: `pattern=type` lines without comments, so its origin
is in a sidecar, and a map made for another imatrix is refused. Invariant: the same ranking gives the same bytes.
Not guaranteed: that llama.cpp honours a line; `explain_overrides` reports what becomes of each.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.errors import BadInput, CheckpointError, Refused, StatsError
from trimoe.io.canonical import sha256_bytes
from trimoe.io.datafile import Data, convert, read
from trimoe.model.gguf.imatrix import Imatrix
from trimoe.quantize.types.tensor_types import Choice
from trimoe.quantize.types.tiers import LayerTypes, Tier

# Order as in the reference implementation's maps.
FFN = ("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp", "ffn_gate_up_exps", "ffn_down_exps")
ATTENTION = ("attn_v", "attn_k", "attn_q", "attn_output")
SCALES = ("ffn_down_exps.scale", "ffn_gate_inp.scale")
ENDS = (("token_embd.weight", "q8_0"), ("output.weight", "q8_0"))

_TOP, _MID, _DEPTH = 1, 7, 30  # of the reference: 1 top, 7 middle and 22 low layers of 30
_LAYER = re.compile(r"blk\.(\d+)\.")
_FFN = re.compile(r"blk\.\d+\.(ffn_(?!.*norm)\w+)\.weight")


@dataclass(frozen=True)
class Ranking:
    """Layers by decreasing contribution. `source` names the kind of evidence, `sha256` is the hash of its content."""

    layers: tuple[int, ...]
    source: str
    sha256: str
    scores: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        """Each layer once."""
        if sorted(self.layers) != list(range(len(self.layers))) or not self.layers:
            raise BadInput(
                "a layer ranking names every layer once",
                expected=f"0..{len(self.layers) - 1} in any order",
                actual=str(self.layers)[:200],
                remedy="correct the ranking",
            )


def rank_by_imatrix(imatrix: Imatrix, layers: int, sha256: str) -> Ranking:
    """Rank by the sum of sums / counts over a layer's tensors; expert tensors count all experts. `CheckpointError`."""
    scores = np.zeros(layers)
    seen = set()
    for name, entry in imatrix.entries.items():
        match = _LAYER.match(name)
        if match is None:
            continue
        layer = int(match[1])
        if layer >= layers:
            raise CheckpointError(
                f"the imatrix has an entry for {name}",
                expected=f"layers 0..{layers - 1}",
                actual=f"layer {layer}",
                remedy="it was made from another model: make one from this model",
            )
        count = float(entry.read_counts().sum(dtype=np.float64))
        total = float(entry.read_sums().sum(dtype=np.float64))
        if count > 0:
            scores[layer] += total / count
            seen.add(layer)
    if missing := sorted(set(range(layers)) - seen):
        raise CheckpointError(
            f"the imatrix has no data for layer {missing[0]}",
            expected=f"{layers} layers",
            actual=f"{len(seen)} layers with data",
            remedy="make it from this model",
        )
    return _ranked(scores, "imatrix", sha256)


def rank_by_stats(stats: ExpertStats, layers: int) -> Ranking:
    """Rank by the total weighted output norm of a layer's experts over all classes (field wnorm). `StatsError`."""
    scores = stats.field("wnorm").sum(axis=(0, 2))
    if len(scores) != layers:
        raise StatsError(
            "the statistics belong to another model",
            expected=f"{layers} layers",
            actual=str(len(scores)),
            remedy="calibrate this model",
        )
    return _ranked(scores, "stats", stats.content_hash)


class _RankingFile(Data, frozen=True, kw_only=True):
    ranking: tuple[int, ...] | None = None
    """Layers, most important first."""
    scores: dict[str, float] | None = None
    """layer -> contribution, larger is more important."""

    def __post_init__(self) -> None:
        """Exactly one of both; layers are numbers."""
        if (self.ranking is None) == (self.scores is None):
            raise ValueError("give exactly one of ranking and scores")
        if wrong := [key for key in self.scores or () if not key.isdecimal()]:
            raise ValueError(f"{wrong[0]!r} is not a layer number")


def rank_by_file(path: Path, layers: int) -> Ranking:
    """Rank by a JSON file with `ranking` (layers, best first) or `scores` (layer -> number). Raises `BadInput`."""
    what = f"layer ranking {path}"
    remedy = 'write {"ranking": [3, 0, ...]} or {"scores": {"0": 1.5, ...}}'
    found = convert(read(path, what, format="json", remedy=remedy), _RankingFile, what, remedy=remedy)
    sha256 = sha256_bytes(path.read_bytes())
    if found.ranking is not None:
        ranking = Ranking(found.ranking, "file", sha256)
    else:
        assert found.scores is not None
        scores = {int(layer): score for layer, score in found.scores.items()}
        if sorted(scores) != list(range(layers)):
            raise BadInput(
                f"layer ranking {path} does not fit the model",
                expected=f"scores of layers 0..{layers - 1}",
                actual=f"{len(scores)} scores",
                remedy="give one score per layer",
            )
        ranking = _ranked(np.array([scores[i] for i in range(layers)]), "file", sha256)
    if len(ranking.layers) != layers:
        raise BadInput(
            f"layer ranking {path} does not fit the model",
            expected=f"{layers} layers",
            actual=str(len(ranking.layers)),
            remedy="rank every layer of this model",
        )
    return ranking


def _ranked(scores: np.ndarray, source: str, sha256: str) -> Ranking:
    if not np.isfinite(scores).all():
        raise Refused(
            "layer contributions contain NaN or infinite values",
            expected="finite numbers",
            actual=f"layer {int(np.flatnonzero(~np.isfinite(scores))[0])}",
            remedy="calibrate again",
        )
    order = np.argsort(-scores, kind="stable")  # ties: the earlier layer first
    return Ranking(tuple(int(i) for i in order), source, sha256, tuple(float(s) for s in scores))


def split(layers: int) -> tuple[int, int]:
    """(top, mid) numbers of layers: 1 and 7 of 30, scaled to any depth, at least one top layer."""
    top = max(1, round(layers * _TOP / _DEPTH))
    return top, min(layers - top, round(layers * _MID / _DEPTH))


def layer_types(mix: LayerTypes, ranking: Ranking) -> dict[int, str]:
    """layer -> type of its FFN tensors."""
    top, mid = split(len(ranking.layers))
    return {
        layer: mix.top if place < top else mix.mid if place < top + mid else mix.low
        for place, layer in enumerate(ranking.layers)
    }


def overrides_of(tier: Tier, ranking: Ranking, names: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """(pattern, type) lines for every tensor of a dynamic tier, in the order of the reference implementation's files.

    `names` are the model's tensors, so that FFN matrices that Gemma 4 lacks (ffn_up_exps, ffn_up_shexp) get lines too.
    """
    assert tier.dynamic is not None
    ffn = (*FFN, *sorted({m[1] for name in names if (m := _FFN.fullmatch(name))} - set(FFN)))
    types, found = layer_types(tier.dynamic, ranking), []
    for layer in range(len(ranking.layers)):
        own = types[layer]
        found += [(f"blk.{layer}.{name}.weight", own) for name in ffn]
        found += [(f"blk.{layer}.{name}.weight", tier.dynamic.attention) for name in ATTENTION]
        found += [(f"blk.{layer}.{name}", own) for name in SCALES]
    return (*found, *ENDS)


def map_text(overrides: Sequence[tuple[str, str]]) -> str:
    """The content of a --tensor-type-file."""
    return "".join(f"{pattern}={kind}\n" for pattern, kind in overrides)


def normal(overrides: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The lines with types in upper case, as `Request` wants them (llama-quantize ignores case)."""
    return tuple((pattern, kind.upper()) for pattern, kind in overrides)


def parse_map(path: Path) -> tuple[tuple[str, str], ...]:
    """A user's --tensor-type-file. Raises `BadInput` for a line that llama-quantize could not read."""
    pairs = []
    for word in path.read_text(encoding="utf-8").split():
        pattern, sign, kind = word.partition("=")
        try:
            re.compile(pattern)
        except re.error as exc:
            raise BadInput(
                f"{path}: {pattern!r} is not a regular expression", actual=str(exc), remedy="correct it"
            ) from exc
        if not (pattern and sign and kind):
            raise BadInput(
                f"{path}: {word!r} is not pattern=type",
                expected="regex=type, separated by spaces or lines",
                remedy="comments are not possible in this file",
            )
        pairs.append((pattern, kind.upper()))
    return tuple(pairs)


@dataclass(frozen=True)
class OverrideReport:
    """What llama.cpp does with a map's lines.

    `unmatched`: no tensor has such a name; `ignored`: llama.cpp keeps the tensor's type (router, scales, norms);
    `fallbacks`: tensor -> (wanted, given) because of its row length; `shadowed`: earlier lines match all its tensors.
    """

    unmatched: tuple[str, ...]
    ignored: tuple[str, ...]
    fallbacks: dict[str, tuple[str, str]]
    shadowed: tuple[str, ...]


def explain_overrides(overrides: Sequence[tuple[str, str]], choices: Sequence[Choice]) -> OverrideReport:
    """Sort the lines by what llama.cpp does with them."""
    unmatched: list[str] = []
    ignored: list[str] = []
    shadowed: list[str] = []
    used = {choice.override for choice in choices}
    for number, (pattern, _) in enumerate(overrides):
        if number in used:
            continue
        hits = [c for c in choices if re.search(pattern.lower(), c.tensor.name)]
        bucket = unmatched if not hits else shadowed if any(c.quantizable for c in hits) else ignored
        bucket.append(pattern)
    fallen = {c.tensor.name: (c.wanted, c.dtype) for c in choices if c.override is not None and c.fell_back}
    return OverrideReport(tuple(unmatched), tuple(ignored), fallen, tuple(shadowed))


def provenance(tier: Tier, ranking: Ranking, text: str, report: OverrideReport) -> dict[str, Any]:
    """Content of a map file's sidecar: where the map comes from."""
    assert tier.dynamic is not None
    top, mid = split(len(ranking.layers))
    return {
        "tier": tier.name,
        "types": msgspec.structs.asdict(tier.dynamic),
        "layers": len(ranking.layers),
        "counts": {"top": top, "mid": mid, "low": len(ranking.layers) - top - mid},
        "ranking": list(ranking.layers),
        "scores": list(ranking.scores),
        "importance": {"source": ranking.source, "sha256": ranking.sha256},
        "map_sha256": sha256_bytes(text.encode()),
        "not_honoured": {
            "no such tensor": list(report.unmatched),
            "kept by llama.cpp": list(report.ignored),
            "fell back": {name: list(pair) for name, pair in report.fallbacks.items()},
        },
    }


def require_fresh(sidecar: dict[str, Any], map_bytes: bytes, ranking: Ranking) -> None:
    """Raise `Refused` for a map that was made for another imatrix, statistics or ranking, or was edited since."""
    made = sidecar.get("importance", {})
    if (made.get("source"), made.get("sha256")) != (ranking.source, ranking.sha256):
        raise Refused(
            "this map of tensor types is stale",
            expected=f"made from {ranking.source} {ranking.sha256[:16]}",
            actual=f"made from {made.get('source')} {str(made.get('sha256'))[:16]}",
            remedy="remove the map file and its sidecar; they are made again",
        )
    if sidecar.get("map_sha256") != sha256_bytes(map_bytes):
        raise Refused(
            "this map of tensor types was changed after it was made",
            expected=str(sidecar.get("map_sha256")),
            actual=sha256_bytes(map_bytes),
            remedy="remove it and its sidecar, or restore it",
        )
