"""Expert statistics: named arrays [class, layer, expert] in one safetensors file, with their origin.

Fields (section 4 of the protocol) are sums over calibration windows. T is the set of a window's tokens routed to an
expert, w_t the router weight applied to token t, o_t the expert's output before weighting:
  tc          sum of |T|                     cc          windows that hit the expert
  wnorm       sum over windows of sqrt(sum_t |w_t o_t|^2)     rnorm   the same without w_t
  wnsq, rnsq  sums of the squares of those   wsum        sum over windows of the mean of w_t
  wsum_total  sum of w_t                     reap_sum    sum of w_t |o_t|      ean_sum   sum of |o_t|
docs/explanation/statistics.md lists all of them. Wide fields have one more axis: coactivation, neuron_act.
Invariants: arrays are float64; saving is deterministic; a file is read with its own shapes checked and nothing else
assumed about it.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.calibrate.stats.heatmap import heatmap_html
from trimoe.errors import CheckpointError, StatsError
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import canonical_json
from trimoe.io.frames import data_frame
from trimoe.model.safetensors import header_bytes, read_array, read_header


@dataclass(frozen=True, eq=False, repr=False)
class ExpertStats:
    """Measurements of every expert by class of the calibration set: the result of `calibrate`.

    >>> stats = trimoe.ExpertStats.load("stats.safetensors")
    >>> stats.shape  # classes, layers, experts
    (1, 4, 32)
    >>> stats.field("tc").sum(axis=2).tolist()  # 384 tokens, each routed to 4 experts of a layer
    [[1536.0, 1536.0, 1536.0, 1536.0]]
    """

    classes: tuple[str, ...]
    fields: dict[str, np.ndarray]
    """Name -> float64 [C, L, E], with C = len(classes)."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Where the statistics come from: model, calibration set, settings, counts."""
    wide: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> float64 [C, L, E, any width]."""
    path: Path | None = None
    """The file they were read from or written to."""

    def __repr__(self) -> str:
        classes, layers, experts = self.shape
        model = str(self.metadata.get("model") or "not recorded")[:16]
        kinds = "class" if classes == 1 else "classes"
        return f"ExpertStats({classes} {kinds}, {layers} layers, {experts} experts; model {model})"

    def _repr_html_(self) -> str:
        """A picture for notebooks: layers by experts, the mean over classes of the first measured field."""
        name, values = "", np.zeros((1, 1))
        for name in ("wnorm", "reap_sum", "tc", *self.fields):
            if np.any(self.fields.get(name, 0)):
                values = self.fields[name][:, list(self.moe_layers)]
                break
        mean = values.mean(-1, keepdims=True)
        shares = np.divide(values, mean, out=np.zeros_like(values), where=mean > 0)
        return heatmap_html(f"{self!r} by {name}", shares.mean(0))

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
                remedy="calibrate again with this field, or choose a recipe that does not need it",
            )
        return self.fields[name]

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers that have experts: all unless the metadata says otherwise. The rows of other layers are zero."""
        return tuple(self.metadata.get("moe_layers") or range(self.shape[1]))

    def of_layers(self, layers: tuple[int, ...]) -> "ExpertStats":
        """These statistics with the rows of `layers` only, in this order."""
        if layers == tuple(range(self.shape[1])):
            return self
        fields = {name: array[:, list(layers)] for name, array in self.fields.items()}
        wide = {name: array[:, list(layers)] for name, array in self.wide.items()}
        return ExpertStats(self.classes, fields, self.metadata, wide)

    def select(self, patterns: list[str]) -> "ExpertStats":
        """Only the classes that match one of the shell-style patterns, in stored order. Raises `StatsError`."""
        chosen = [i for i, c in enumerate(self.classes) if any(fnmatchcase(c, p) for p in patterns)]
        if not chosen:
            raise StatsError(
                f"no class matches {', '.join(patterns) or 'the recipe'}",
                expected="classes of the recipe",
                actual=", ".join(self.classes),
                remedy="calibrate with such classes or use another recipe",
            )
        wide = {name: array[chosen] for name, array in self.wide.items()}
        return replace(self.of_classes(chosen), wide=wide)

    def of_classes(self, rows: list[int]) -> "ExpertStats":
        """The classes of these rows, without wide fields."""
        fields = {name: array[rows] for name, array in self.fields.items()}
        counts = self.metadata.get("positions")
        names, metadata = tuple(self.classes[i] for i in rows), self.metadata
        if isinstance(counts, dict):
            metadata = {**metadata, "positions": {name: counts[name] for name in names if name in counts}}
        return ExpertStats(names, fields, metadata)

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

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values: lists [C][L][E] per field. Values that are not finite stay so."""
        return {
            "classes": list(self.classes),
            "fields": {name: array.tolist() for name, array in self._arrays().items()},
            "metadata": self.metadata,
        }

    def to_pandas(self) -> Any:
        """A DataFrame with one row per class, layer and expert, and one column per field.

        Layers without experts, bootstrap shards and wide fields are left out. Raises `MissingPrerequisite` without
        pandas.
        """
        layers, experts = list(self.moe_layers), self.shape[2]
        columns: dict[str, Any] = {
            "class": [name for name in self.classes for _ in range(len(layers) * experts)],
            "layer": [layer for _ in self.classes for layer in layers for _ in range(experts)],
            "expert": [expert for _ in range(len(self.classes) * len(layers)) for expert in range(experts)],
        }
        whole = {name: array[:, layers].ravel() for name, array in self.fields.items() if "/" not in name}
        return data_frame(columns | whole)

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write one safetensors file; the same statistics give the same bytes. Raises `BadInput` if it exists."""
        arrays = self._arrays()
        meta = {
            "trimoe": "stats/1",
            "classes": json.dumps(list(self.classes)),
            "metadata": canonical_json(self.metadata).decode(),
        }
        header = header_bytes({name: ("F64", array.shape) for name, array in arrays.items()}, meta)
        with publish_file(Path(path), overwrite=overwrite) as temporary, temporary.open("wb") as out:
            out.write(header)
            for array in arrays.values():
                out.write(np.ascontiguousarray(array, "<f8").data)

    @classmethod
    def load(cls, path: Path | str) -> "ExpertStats":
        """Read a file made by `save`. Raises `StatsError`."""
        path = Path(path)
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
                remedy="if it is reference JSON, name it .json or .json.gz, or use `trimoe stats import`",
            ) from exc
        wide = {name: fields.pop(name) for name in list(fields) if fields[name].ndim == 4}
        shapes = {array.shape[:3] for array in (*fields.values(), *wide.values())}
        if not fields or len(shapes) != 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[0] != len(classes):
            raise StatsError(
                f"{path} has fields of unequal shape",
                expected="all [classes, layers, experts]",
                actual=str(sorted(shapes))[:200],
                remedy="make the file again",
            )
        layers, moe_layers = next(iter(shapes))[1], metadata.get("moe_layers", [])
        if not isinstance(moe_layers, list) or moe_layers != [n for n in range(layers) if n in moe_layers]:
            raise StatsError(
                f"{path} lists layers with experts that it does not have",
                expected=f"0..{layers - 1}",
                actual=str(moe_layers)[:200],
                remedy="make the file again",
            )
        return cls(classes, fields, metadata, wide, path)
