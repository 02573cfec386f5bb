"""Expert statistics: named arrays [class, layer, expert] in one safetensors file, with their origin.

Fields (protocol section 4), accumulated over calibration windows; T is the set of a window's tokens routed to an
expert, w_t the router weight applied to token t, o_t the expert's output before weighting:
  tc          sum of |T|                     cc          windows that hit the expert
  wnorm       sum over windows of sqrt(sum_t |w_t o_t|^2)     rnorm   the same without w_t
  wnsq, rnsq  sums of the squares of those   wsum        sum over windows of the mean of w_t
  wsum_total  sum of w_t                     reap_sum    sum of w_t |o_t|      ean_sum   sum of |o_t|
docs/explanation/statistics.md has all of them. Wide fields have one more axis: coactivation, neuron_act.
Invariants: float64; saving is deterministic; a file is never trusted beyond its own shape checks.
"""

import gzip
import hashlib
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
REFERENCE_WIDE = "neuron_act"
"""The reference layout's one list per entry: [I] sums of squares."""


@dataclass(frozen=True)
class ExpertStats:
    """`fields[name]` is float64 [C, L, E] with C = len(classes), `wide[name]` float64 [C, L, E, any width].

    `metadata` says where it comes from.
    """

    classes: tuple[str, ...]
    fields: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)
    wide: dict[str, np.ndarray] = field(default_factory=dict)

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
        wide = {name: array[:, list(layers)] for name, array in self.wide.items()}
        return ExpertStats(self.classes, fields, self.metadata, wide)

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
        wide = {name: array[chosen] for name, array in self.wide.items()}
        return ExpertStats(tuple(self.classes[i] for i in chosen), fields, self.metadata, wide)

    @property
    def content_hash(self) -> str:
        """sha256 of classes and arrays (metadata excluded)."""
        digest = hashlib.sha256(canonical_json(list(self.classes)))
        for name, array in self._arrays().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array, "<f8").data)
        return digest.hexdigest()

    def _arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, in the order of the file."""
        return dict(sorted({**self.fields, **self.wide}.items()))

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write one safetensors file; the same statistics give the same bytes."""
        arrays = self._arrays()
        meta = {
            "trimoe": "stats/1",
            "classes": json.dumps(list(self.classes)),
            "metadata": canonical_json(self.metadata).decode(),
        }
        header = header_bytes({name: ("F64", array.shape) for name, array in arrays.items()}, meta)
        with publish_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as out:
            out.write(header)
            for array in arrays.values():
                out.write(np.ascontiguousarray(array, "<f8").data)

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
            fields = {name: read_array(info).astype(np.float64) for name, info in tensors.items()}
        except (CheckpointError, KeyError, ValueError, TypeError) as exc:
            raise StatsError(
                f"{path} is not a statistics file",
                expected="a file made by `trimoe calibrate` or `stats import`",
                actual=str(exc).splitlines()[0][:200],
                remedy="reference JSON goes through `trimoe stats import`",
            ) from exc
        wide = {name: fields.pop(name) for name in list(fields) if fields[name].ndim == 4}
        shapes = {array.shape[:3] for array in (*fields.values(), *wide.values())}
        if not fields or len(shapes) != 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[0] != len(classes):
            raise StatsError(f"{path} has fields of unequal shape", expected="all [classes, layers, experts]",
                             actual=str(sorted(shapes))[:200], remedy="make the file again")  # fmt: skip
        layers, moe_layers = next(iter(shapes))[1], metadata.get("moe_layers", [])
        if not isinstance(moe_layers, list) or moe_layers != [n for n in range(layers) if n in moe_layers]:
            raise StatsError(f"{path} names layers with experts that it does not have", expected=f"0..{layers - 1}",
                             actual=str(moe_layers)[:200], remedy="make the file again")  # fmt: skip
        return cls(classes, fields, metadata, wide)


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
        inner = rows[classes[0]][0][0].get(REFERENCE_WIDE)
        width = len(inner) if inner is not None else 0
        neurons = np.full((len(classes), layers, experts, width), np.nan)
        for i, name in enumerate(classes):
            if len(categories[name]) != layers:
                raise ValueError(f"class {name} has {len(categories[name])} layers, not {layers}")
            for layer, entries in enumerate(rows[name]):
                if sorted(e["id"] for e in entries) != list(range(experts)):
                    raise ValueError(f"class {name} layer {layer} does not list experts 0..{experts - 1} once each")
                for entry in entries:
                    for f in present:
                        fields[f][i, layer, entry["id"]] = entry[f]
                    if inner is not None:
                        neurons[i, layer, entry["id"]] = _row(entry[REFERENCE_WIDE], width)
    except FileNotFoundError as exc:
        raise StatsError(f"{path} not found", remedy="check the path") from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, zlib.error) as exc:
        raise StatsError(
            f"{path} is not in the reference layout",
            expected="categories{class{layer[{id, wnorm, tc, ...}]}}",
            actual=f"{type(exc).__name__}: {str(exc)[:200]}",
            remedy="see docs/reference/stats.md",
        ) from exc
    wide = {REFERENCE_WIDE: neurons} if inner is not None else {}
    return ExpertStats(classes, fields, {"source": "reference", "source_sha256": sha256_bytes(raw)}, wide)


def _row(values: Any, width: int) -> list[Any]:
    """A list of an entry; a wrong length would be broadcast silently."""
    if not isinstance(values, list) or len(values) != width:
        raise ValueError(f"{REFERENCE_WIDE} is not a list of {width} numbers in every entry")
    return values


def export_reference(stats: ExpertStats) -> dict[str, Any]:
    """The reference layout as a JSON-ready object; counts stay whole numbers."""
    present = [f for f in REFERENCE_FIELDS if f in stats.fields]
    neurons = stats.wide.get(REFERENCE_WIDE)
    _, layers, experts = stats.shape

    def entry(i: int, layer: int, expert: int) -> dict[str, Any]:
        values = {f: float(stats.fields[f][i, layer, expert]) for f in present}
        row = {"id": expert} | {f: int(v) if f in ("tc", "cc") and v.is_integer() else v for f, v in values.items()}
        return row | ({REFERENCE_WIDE: neurons[i, layer, expert].tolist()} if neurons is not None else {})

    categories = {
        name: {str(layer): [entry(i, layer, e) for e in range(experts)] for layer in range(layers)}
        for i, name in enumerate(stats.classes)
    }
    return {
        "metadata": {"num_layers": layers, "num_experts": experts, "categories": list(stats.classes)},
        "categories": categories,
    }


def merge(parts: list[ExpertStats]) -> ExpertStats:
    """Runs of one model over disjoint documents as one, equal to one run over all of them.

    Sums add up and maxima keep the larger value; a field that cannot be merged (metadata["merge"] says "none") is left
    out and named in metadata["left_out"]. Raises `StatsError` on a mismatch, and for the same statistics given twice:
    their tokens would count double.
    """
    first = parts[0]
    for part in parts[1:]:
        for what, one, other in (
            ("classes", first.classes, part.classes),
            ("shape", first.shape, part.shape),
            ("fields", sorted(first.fields), sorted(part.fields)),
            ("wide fields", _shapes(first), _shapes(part)),
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
    if len(parts) == 1:
        return ExpertStats(first.classes, dict(first.fields), {**first.metadata, "merged": hashes}, dict(first.wide))
    how = {f: "max" if f.endswith("_max") else "sum" for f in first.fields} | first.metadata.get("merge", {})
    fields = {
        f: (np.max if how[f] == "max" else np.sum)([p.fields[f] for p in parts], axis=0)
        for f in first.fields
        if how[f] != "none"
    }
    wide = {f: np.sum([p.wide[f] for p in parts], axis=0) for f in first.wide}
    metadata = {**first.metadata, "merged": hashes, **_merged_metadata([part.metadata for part in parts])}
    if left_out := sorted(set(first.fields) - set(fields)):
        metadata["left_out"] = left_out
    return ExpertStats(first.classes, fields, metadata, wide)


def _shapes(stats: ExpertStats) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((name, array.shape) for name, array in stats.wide.items())


_ADDITIVE = ("tokens", "documents", "windows", "nonfinite", "masked_tokens", "masked_outputs", "skipped_tokens")
"""Entries of the metadata that count something."""


def _merged_metadata(all_metadata: list[dict[str, Any]]) -> dict[str, Any]:
    """What differs between runs: counts add up, anything else (names and hashes of the sets) becomes a list."""
    result: dict[str, Any] = {}
    for key in sorted({key for metadata in all_metadata for key in metadata}):
        values = [m.get(key) for m in all_metadata]
        if key in _ADDITIVE:
            result[key] = _added([v for v in values if v is not None])
        elif any(v != values[0] for v in values):
            result[key] = values
    return result


def _added(values: list[Any]) -> Any:
    """Numbers, or dicts and lists of them, added place by place. Raises `StatsError` where they differ in form."""
    if all(type(v) is int for v in values):
        return sum(values)
    if all(isinstance(v, dict) for v in values):
        return {key: _added([v[key] for v in values if key in v]) for key in sorted({k for v in values for k in v})}
    if all(isinstance(v, list) and len(v) == len(values[0]) for v in values):
        return [_added(list(row)) for row in zip(*values, strict=True)]
    raise StatsError("statistics with unlike counts in their metadata cannot be merged", actual=str(values)[:200],
                     remedy="make the files with the same version")  # fmt: skip
