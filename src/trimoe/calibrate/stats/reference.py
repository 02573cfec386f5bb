"""Statistics in the JSON layout of the reference implementation: categories{class{layer[{id, wnorm, ...}]}}.

Invariants: nothing is dropped silently. Every number of an entry becomes a field of its name, every list of numbers a
wide field (`neuron_act`); the metadata and other top-level keys are kept and written again. What cannot be represented
(text in an entry) is listed in `metadata["left_out"]`. Reading and writing a file gives the same JSON, except for what
is listed and for null among the numbers, which becomes NaN. Not guaranteed: bounded memory; reading a file with
`neuron_act` takes several times its size.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.errors import StatsError
from trimoe.io.atomic import publish_file
from trimoe.io.canonical import canonical_json, sha256_bytes
from trimoe.io.expand import expanded, stored

FIELDS = ("wnorm", "rnorm", "wnsq", "rnsq", "wsum", "tc", "cc")
"""The layout's own numbers, in the order they are written."""
NEURONS = "neuron_act"
"""The layout's one list per entry: [I] sums of squares of the inner activations."""
_COUNTS = ("tc", "cc")
_MOST_EXTRA = 1 << 20
"""Bytes of metadata and further top-level keys that are kept."""


def import_reference(path: Path | str) -> ExpertStats:
    """Read a file, JSON or gzipped JSON. Raises `StatsError` for anything that is not in the layout."""
    path = Path(path)
    try:
        raw = stored(path)
        data = json.loads(expanded(raw, path), object_pairs_hook=_once)
        return _stats(data, sha256_bytes(raw))
    except FileNotFoundError as exc:
        raise StatsError(f"{path} not found", expected="a statistics file", remedy="check the path") from exc
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        EOFError,
        zlib.error,
        RecursionError,
    ) as exc:
        raise StatsError(
            f"{path} is not in the reference layout",
            expected="categories{class{layer[{id, wnorm, tc, ...}]}}",
            actual=f"{type(exc).__name__}: {str(exc)[:200]}",
            remedy="see docs/howto/import-statistics.md",
        ) from exc


def open_stats(source: ExpertStats | Path | str) -> ExpertStats:
    """Statistics from a file: the reference layout if its name ends with .json or .json.gz, otherwise what `calibrate`
    writes. `ExpertStats` are returned unchanged. Raises `StatsError`."""
    if isinstance(source, ExpertStats):
        return source
    path = Path(source)
    _require_file(path)
    return import_reference(path) if path.name.endswith((".json", ".json.gz")) else ExpertStats.load(path)


def _require_file(path: Path) -> None:
    """Refuse a path that is missing or is another kind of input than a statistics file."""
    other = "a directory" if path.is_dir() else "a YAML file" if path.suffix in (".yaml", ".yml") else None
    other = other if path.exists() else None
    if path.exists() and other is None:
        return
    raise StatsError(
        f"{path} is not a statistics file" if other else f"statistics file {path} not found",
        expected="a file made by `trimoe calibrate` or `trimoe stats import`",
        actual=other or "no such file",
        remedy="make it first: trimoe calibrate MODEL --set SET -o STATS.safetensors",
    )


def save_reference(stats: ExpertStats, path: Path | str) -> None:
    """Write `export_reference` as JSON, gzipped if the name ends with .gz. Raises `BadInput` if the file exists."""
    # NaN and Infinity are not JSON, but the reference layout has them and they must not turn into numbers.
    body = json.dumps(export_reference(stats)).encode()
    with publish_file(Path(path)) as temporary:
        temporary.write_bytes(gzip.compress(body, mtime=0) if str(path).endswith(".gz") else body)


def export_reference(stats: ExpertStats) -> dict[str, Any]:
    """The layout as a JSON-ready object; counts stay whole numbers. `left_out` lists the fields it cannot hold."""
    names, wide = _exported(stats)
    _, layers, experts = stats.shape
    # Indexing Python lists is many times faster than indexing array cells one by one.
    columns: dict[str, Any] = {name: stats.fields[name].tolist() for name in names}
    columns |= {name: stats.wide[name].tolist() for name in wide}

    def entry(i: int, layer: int, expert: int) -> dict[str, Any]:
        values = {name: column[i][layer][expert] for name, column in columns.items()}
        return {"id": expert} | {n: int(v) if n in _COUNTS and v.is_integer() else v for n, v in values.items()}

    categories = {
        name: {str(layer): [entry(i, layer, e) for e in range(experts)] for layer in range(layers)}
        for i, name in enumerate(stats.classes)
    }
    kept = stats.metadata.get("reference", {})
    about: dict[str, Any] = {"num_layers": layers, "num_experts": experts, "categories": list(stats.classes)}
    if "model" in stats.metadata:
        about["model_sha256"] = stats.metadata["model"]
    return {**kept.get("other", {}), "metadata": {**kept.get("metadata", {}), **about}, "categories": categories}


def left_out(stats: ExpertStats) -> list[str]:
    """Fields that the export cannot hold."""
    names, wide = _exported(stats)
    return sorted({*stats.fields, *stats.wide} - {*names, *wide})


def _exported(stats: ExpertStats) -> tuple[list[str], list[str]]:
    """Names of fields and of wide fields to write: the layout's own, and those that were imported from such a file."""
    imported = stats.metadata.get("reference", {}).get("fields", [])
    wanted = [*FIELDS, *(name for name in imported if name not in FIELDS and name != NEURONS), NEURONS]
    return [n for n in wanted if n in stats.fields], [n for n in wanted if n in stats.wide]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with each key once; plain JSON parsing would keep the last of two."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return result


def _stats(data: Any, digest: str) -> ExpertStats:
    categories = data["categories"]
    classes = tuple(categories)
    layers = len(categories[classes[0]])
    experts = len(categories[classes[0]]["0"])
    about = data.get("metadata", {})
    for key, count in (("num_layers", layers), ("num_experts", experts)):
        if about.get(key, count) != count:
            raise ValueError(f"metadata says {key} = {about[key]}, the entries are {count}")
    table = _Table(len(classes), layers, experts)
    for i, name in enumerate(classes):
        if len(categories[name]) != layers:
            raise ValueError(f"class {name} has {len(categories[name])} layers, not {layers}")
        for layer in range(layers):
            entries = categories[name][str(layer)]
            ids = [e["id"] for e in entries]
            if any(type(e) is not int for e in ids) or sorted(ids) != list(range(experts)):
                raise ValueError(f"class {name} layer {layer} does not list experts 0..{experts - 1} once each")
            for entry in entries:
                table.add((i, layer, entry["id"]), entry, f"class {name} layer {layer} expert {entry['id']}")
    fields, wide = table.finish()
    reference, lost = _kept(data, [*fields, *wide])
    metadata: dict[str, Any] = {"source": "reference", "source_sha256": digest, "reference": reference}
    if lost | table.lost:
        metadata["left_out"] = sorted(lost | table.lost)
    return ExpertStats(classes, fields, metadata, wide)


def _kept(data: dict[str, Any], fields: list[str]) -> tuple[dict[str, Any], set[str]]:
    """(what is kept beside the numbers, names of what is not): values that are not JSON, or larger than the limit."""
    kept: dict[str, dict[str, Any]] = {"metadata": {}, "other": {}}
    lost: set[str] = set()
    pairs = [("metadata", k, v) for k, v in data.get("metadata", {}).items()]
    pairs += [("other", k, v) for k, v in data.items() if k not in ("metadata", "categories")]
    for group, key, value in pairs:
        try:
            if len(canonical_json(value)) > _MOST_EXTRA:
                raise ValueError(f"{key} is too large")
            kept[group][key] = value
        except ValueError:  # also NaN and Infinity, which are not JSON
            lost.add(f"{group}.{key}")
    return {**kept, "fields": fields}, lost


class _Table:
    """Collects fields from entries; every entry must have every field."""

    def __init__(self, classes: int, layers: int, experts: int) -> None:
        self.shape = (classes, layers, experts)
        self.fields: dict[str, np.ndarray] = {}
        self.wide: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        self.lost: set[str] = set()

    def add(self, at: tuple[int, int, int], entry: dict[str, Any], where: str) -> None:
        """Take the values of one entry."""
        for name, value in entry.items():
            if name == "id":
                continue
            if value is None or type(value) in (int, float):
                if name not in self.fields:
                    self.fields[name] = np.full(self.shape, np.nan)
                self.fields[name][at] = np.nan if value is None else value
            elif isinstance(value, list):
                array = np.asarray(value, np.float64)
                if array.ndim != 1 or (name in self.wide and self.wide[name].shape[-1] != len(array)):
                    raise ValueError(f"{name} of {where} is not a list of as many numbers as the others")
                if name not in self.wide:
                    self.wide[name] = np.full((*self.shape, len(array)), np.nan)
                self.wide[name][at] = array
            elif name in FIELDS:
                raise ValueError(f"{name} of {where} is {value!r:.50}, not a number")
            else:
                self.lost.add(name)
                continue
            self.counts[name] = self.counts.get(name, 0) + 1

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(fields, wide fields). Raises `ValueError` for a field that some entries do not have."""
        if not self.fields.keys() & set(FIELDS):
            raise ValueError(f"the entries have none of {', '.join(FIELDS)}")
        whole = self.shape[0] * self.shape[1] * self.shape[2]
        for name, count in self.counts.items():
            if name in self.lost or count != whole:
                raise ValueError(f"{name} is a number or list in {count} of {whole} entries only")
            if name in self.fields and name in self.wide:
                raise ValueError(f"{name} is a number in some entries and a list in others")
        return self.fields, self.wide
