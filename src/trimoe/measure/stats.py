"""Expert statistics: named arrays [class, layer, expert] in one safetensors file, with their origin.

Fields (protocol section 4), accumulated over calibration windows; T is the set of a window's tokens routed to an
expert, w_t the router weight applied to token t, o_t the expert's output before weighting:
  tc          sum of |T|                     cc          windows that hit the expert
  wnorm       sum over windows of sqrt(sum_t |w_t o_t|^2)     rnorm   the same without w_t
  wnsq, rnsq  sums of the squares of those   wsum        sum over windows of the mean of w_t
  wsum_total  sum of w_t                     reap_sum    sum of w_t |o_t|      ean_sum   sum of |o_t|
Invariants: float64; saving is deterministic; a file is never trusted beyond its own shape checks.
"""

import gzip
import json
import zlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.artifact import canonical_json, publish_file, sha256_bytes
from trimoe.errors import CheckpointError, StatsError
from trimoe.model.safetensors import header_bytes, read_array, read_header

FIELDS = ("tc", "cc", "wnorm", "rnorm", "wnsq", "rnsq", "wsum", "wsum_total", "reap_sum", "ean_sum")
REFERENCE_FIELDS = ("wnorm", "rnorm", "wnsq", "rnsq", "wsum", "tc", "cc")


@dataclass(frozen=True)
class ExpertStats:
    """`fields[name]` is float64 [C, L, E] with C = len(classes). `metadata` says where it comes from."""

    classes: tuple[str, ...]
    fields: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(classes, layers, experts)."""
        c, layers, experts = next(iter(self.fields.values())).shape
        return c, layers, experts

    def field(self, name: str) -> np.ndarray:
        """One field, or `StatsError` when these statistics do not have it."""
        if name not in self.fields:
            raise StatsError(
                f"the statistics have no field {name}",
                expected=name,
                actual=", ".join(sorted(self.fields)),
                remedy="calibrate again, or choose a recipe that does not need it",
            )
        return self.fields[name]

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers that have experts; all of them unless the metadata says otherwise. The rows of others are zero."""
        return tuple(self.metadata.get("moe_layers") or range(self.shape[1]))

    def of_layers(self, layers: tuple[int, ...]) -> "ExpertStats":
        """These statistics with the rows of `layers` alone, in this order."""
        if layers == tuple(range(self.shape[1])):
            return self
        fields = {name: array[:, list(layers)] for name, array in self.fields.items()}
        return ExpertStats(self.classes, fields, self.metadata)

    def select(self, patterns: list[str]) -> "ExpertStats":
        """Only the classes that match one of the shell-style patterns, in stored order."""
        chosen = [i for i, c in enumerate(self.classes) if any(fnmatchcase(c, p) for p in patterns)]
        if not chosen:
            raise StatsError(
                f"no class matches {', '.join(patterns) or 'the recipe'}",
                expected="classes of the recipe",
                actual=", ".join(self.classes),
                remedy="calibrate with such classes or use another recipe",
            )
        fields = {name: array[chosen] for name, array in self.fields.items()}
        return ExpertStats(tuple(self.classes[i] for i in chosen), fields, self.metadata)

    @property
    def content_hash(self) -> str:
        """sha256 of classes and arrays (metadata excluded)."""
        parts = [canonical_json(list(self.classes))]
        for name in sorted(self.fields):
            parts += [name.encode(), self.fields[name].tobytes()]
        return sha256_bytes(b"".join(parts))

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write one safetensors file; the same statistics give the same bytes."""
        names = sorted(self.fields)
        meta = {
            "trimoe": "stats/1",
            "classes": json.dumps(list(self.classes)),
            "metadata": canonical_json(self.metadata).decode(),
        }
        header = header_bytes(dict.fromkeys(names, ("F64", self.shape)), meta)
        with publish_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as out:
            out.write(header)
            for name in names:
                out.write(np.ascontiguousarray(self.fields[name], "<f8").tobytes())

    @classmethod
    def load(cls, path: Path) -> "ExpertStats":
        """Read a file made by `save`. Raises `StatsError`."""
        try:
            tensors, meta = read_header(path)
            classes = tuple(json.loads(meta["classes"]))
            metadata = json.loads(meta["metadata"])
            if not all(isinstance(c, str) for c in classes) or len(set(classes)) != len(classes):
                raise ValueError("class names are not distinct texts")
            if not isinstance(metadata, dict):
                raise ValueError("metadata is not an object")
            moe_layers = metadata.get("moe_layers", [])
            fields = {name: read_array(info).astype(np.float64) for name, info in tensors.items()}
        except (CheckpointError, KeyError, ValueError, TypeError) as exc:
            raise StatsError(
                f"{path} is not a statistics file",
                expected="a file made by `trimoe calibrate` or `stats import`",
                actual=str(exc).splitlines()[0][:200],
                remedy="reference JSON goes through `trimoe stats import`",
            ) from exc
        shapes = {array.shape for array in fields.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[0] != len(classes):
            raise StatsError(f"{path} has fields of unequal shape", actual=str(sorted(shapes))[:200])
        layers = next(iter(shapes))[1]
        if not isinstance(moe_layers, list) or moe_layers != [n for n in range(layers) if n in moe_layers]:
            raise StatsError(f"{path} names layers with experts that it does not have", expected=f"0..{layers - 1}",
                             actual=str(moe_layers)[:200])  # fmt: skip
        return cls(classes, fields, metadata)


def import_reference(path: Path) -> ExpertStats:
    """Read the reference layout: categories{class{layer[{id, wnorm, ...}]}}, JSON or gzipped JSON."""
    try:
        raw = path.read_bytes()
        data = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        categories = data["categories"]
        classes = tuple(categories)
        layers = len(categories[classes[0]])
        rows = {c: [categories[c][str(layer)] for layer in range(layers)] for c in classes}
        experts = len(rows[classes[0]][0])
        present = [f for f in REFERENCE_FIELDS if f in rows[classes[0]][0][0]]
        if not present:
            raise ValueError("the entries have no known field")
        for key, count in (("num_layers", layers), ("num_experts", experts)):
            if data.get("metadata", {}).get(key, count) != count:
                raise ValueError(f"metadata says {key} = {data['metadata'][key]}, the entries are {count}")
        fields = {f: np.full((len(classes), layers, experts), np.nan) for f in present}
        for i, name in enumerate(classes):
            if len(categories[name]) != layers:
                raise ValueError(f"class {name} has {len(categories[name])} layers, not {layers}")
            for layer, entries in enumerate(rows[name]):
                if sorted(e["id"] for e in entries) != list(range(experts)):
                    raise ValueError(f"class {name} layer {layer} does not list experts 0..{experts - 1} once each")
                for entry in entries:
                    for f in present:
                        fields[f][i, layer, entry["id"]] = entry[f]
    except FileNotFoundError as exc:
        raise StatsError(f"{path} not found", remedy="check the path") from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, zlib.error) as exc:
        raise StatsError(
            f"{path} is not in the reference layout",
            expected="categories{class{layer[{id, wnorm, tc, ...}]}}",
            actual=f"{type(exc).__name__}: {str(exc)[:200]}",
            remedy="see docs/reference/stats.md",
        ) from exc
    return ExpertStats(classes, fields, {"source": "reference", "source_sha256": sha256_bytes(raw)})


def export_reference(stats: ExpertStats) -> dict[str, Any]:
    """The reference layout as a JSON-ready object; counts stay whole numbers."""
    present = [f for f in REFERENCE_FIELDS if f in stats.fields]
    _, layers, experts = stats.shape

    def entry(i: int, layer: int, expert: int) -> dict[str, Any]:
        values = {f: float(stats.fields[f][i, layer, expert]) for f in present}
        return {"id": expert} | {f: int(v) if f in ("tc", "cc") and v.is_integer() else v for f, v in values.items()}

    categories = {
        name: {str(layer): [entry(i, layer, e) for e in range(experts)] for layer in range(layers)}
        for i, name in enumerate(stats.classes)
    }
    return {
        "metadata": {"num_layers": layers, "num_experts": experts, "categories": list(stats.classes)},
        "categories": categories,
    }


def merge(parts: list[ExpertStats]) -> ExpertStats:
    """Runs of one model over disjoint documents as one. Sums add up, `*_max` fields keep the larger value.

    Raises `StatsError` on a mismatch, and for the same statistics given twice: their tokens would count double.
    """
    first = parts[0]
    for part in parts[1:]:
        for what, one, other in (
            ("classes", first.classes, part.classes),
            ("shape", first.shape, part.shape),
            ("fields", sorted(first.fields), sorted(part.fields)),
            ("model", first.metadata.get("model"), part.metadata.get("model")),
        ):
            if one != other:
                raise StatsError(
                    f"statistics of different {what} cannot be merged", expected=str(one)[:200], actual=str(other)[:200]
                )
    hashes = [part.content_hash for part in parts]
    if len(set(hashes)) < len(hashes):
        raise StatsError("the same statistics are given twice", expected="runs over disjoint documents",
                         remedy="name each file once")  # fmt: skip
    fields = {f: (np.max if f.endswith("_max") else np.sum)([p.field(f) for p in parts], axis=0) for f in first.fields}
    metadata = {**first.metadata, "merged": hashes}
    if len(parts) > 1:
        metadata |= _merged_metadata([part.metadata for part in parts])
    return ExpertStats(first.classes, fields, metadata)


def _merged_metadata(all_metadata: list[dict[str, Any]]) -> dict[str, Any]:
    """What differs between runs: counts add up, the names and hashes of the sets become lists."""
    result: dict[str, Any] = {}
    for key in sorted({key for metadata in all_metadata for key in metadata}):
        values = [m.get(key) for m in all_metadata]
        if isinstance(values[0], dict) and all(
            isinstance(v, dict) and all(type(n) is int for n in v.values()) for v in values
        ):
            names = sorted({name for v in values if v for name in v})
            result[key] = {name: sum(v.get(name, 0) for v in values if v) for name in names}
        elif key in ("windows", "skipped_tokens", "documents") and all(type(v) is int for v in values):
            result[key] = sum(v for v in values if type(v) is int)
        elif any(v != values[0] for v in values):
            result[key] = values
    return result
