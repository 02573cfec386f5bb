"""The drop map: which experts go, layer by layer; its file, its checks, its algebra.

Invariants: ids are unique, sorted and in range once validated; every layer keeps the same number of experts, because
config.json has one count for all layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.errors import MapError
from trimoe.io.publish import canonical_json, each_key_once, parse_json, read_json, sha256_json, write_json


@dataclass(frozen=True)
class DropMap:
    """`drop[layer]` are the dropped expert ids. `num_experts` is the count before the cut, if known."""

    drop: dict[int, tuple[int, ...]]
    num_experts: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def keep(self, layer: int, num_experts: int | None = None) -> list[int]:
        """Kept ids of a layer in ascending order, which is their order in the cut model."""
        gone = set(self.drop[layer])
        return [e for e in range(num_experts or self.num_experts or 0) if e not in gone]

    @property
    def content_hash(self) -> str:
        """sha256 of the dropped ids alone."""
        return sha256_json({str(layer): list(ids) for layer, ids in self.drop.items()})

    def validate(self, num_layers: int, num_experts: int, top_k: int, fingerprint: str | None = None) -> None:
        """Raise `MapError` unless this map can cut a model of this shape (and fingerprint, when both are known)."""
        made_for = self.metadata.get("model")
        if fingerprint and made_for and made_for != fingerprint:
            raise MapError(
                "the map was made for another model",
                expected=f"model {fingerprint[:16]}",
                actual=f"model {made_for[:16]}",
                remedy="make the map from statistics of this model",
            )
        if self.num_experts not in (None, num_experts):
            raise MapError(
                "the map is for another number of experts",
                expected=str(num_experts),
                actual=str(self.num_experts),
                remedy="use the map of this model",
            )
        if sorted(self.drop) != list(range(num_layers)):
            missing = sorted(set(range(num_layers)) - set(self.drop))
            raise MapError(
                "the map does not cover exactly the layers of the model",
                expected=f"layers 0..{num_layers - 1}",
                actual=f"missing {missing}" if missing else f"extra {sorted(set(self.drop) - set(range(num_layers)))}",
                remedy="use the map of this model",
            )
        for layer, ids in self.drop.items():
            if len(set(ids)) != len(ids):
                twice = min(i for i in ids if ids.count(i) > 1)
                raise MapError(f"layer {layer} of the map names an expert twice", actual=f"expert {twice}")
            if ids and (min(ids) < 0 or max(ids) >= num_experts):
                raise MapError(
                    f"layer {layer} of the map names an expert that does not exist",
                    expected=f"0..{num_experts - 1}",
                    actual=str([i for i in ids if not 0 <= i < num_experts]),
                )
        counts = {len(ids) for ids in self.drop.values()}
        if len(counts) > 1:
            raise MapError(
                "the map drops unequal counts",
                expected="the same number in every layer",
                actual=f"{min(counts)} to {max(counts)}",
                remedy="config.json has one count for all layers",
            )
        if num_experts - max(counts) < top_k:
            raise MapError(
                "the map keeps fewer experts than the router selects",
                expected=f"at least {top_k} kept",
                actual=f"{num_experts - max(counts)} kept",
                remedy="drop fewer experts",
            )

    def as_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "drop": {str(layer): list(ids) for layer, ids in sorted(self.drop.items())},
            "num_experts": self.num_experts,
            "metadata": self.metadata,
        }

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Publish the map as JSON."""
        write_json(path, self.as_json(), overwrite=overwrite)

    @classmethod
    def load(cls, path: Path) -> "DropMap":
        """Read a map; also accepts a bare {"0": [ids]}. Raises `MapError`."""
        data = read_json(path, "drop map", MapError)
        _require_canonical(path, data)
        body = data.get("drop", data) if isinstance(data, dict) else None
        if not isinstance(body, dict) or not body:
            raise MapError(f"{path} is not a drop map", expected='{"drop": {"0": [ids], ...}} or {"0": [ids], ...}')
        extra = data if "drop" in data else {}
        number, metadata = extra.get("num_experts"), extra.get("metadata", {})
        if not isinstance(metadata, dict) or not (number is None or type(number) is int):
            raise MapError(f"{path} has malformed num_experts or metadata", expected="a number and an object")
        if not isinstance(metadata.get("model"), str | None):
            raise MapError(
                f"{path} names no model in metadata.model",
                expected="a fingerprint",
                actual=repr(metadata["model"])[:80],
            )
        return cls(_layers(body, str(path)), number, metadata)


def _require_canonical(path: Path, data: Any) -> None:
    """No key twice, and no number that cannot be written again (NaN, 1e400)."""
    try:
        canonical_json(data)
        parse_json(path.read_bytes(), object_pairs_hook=each_key_once)
    except (ValueError, RecursionError) as exc:
        raise MapError(
            f"{path} is not a drop map", expected="JSON with each key once and finite numbers", actual=str(exc)[:200]
        ) from exc


def _layers(body: Mapping[str, Any], source: str) -> dict[int, tuple[int, ...]]:
    drop: dict[int, tuple[int, ...]] = {}
    for key, ids in body.items():
        if (
            not (key.isdecimal() and len(key) < 8 and str(int(key)) == key)
            or not isinstance(ids, list)
            or any(type(i) is not int for i in ids)
        ):
            raise MapError(
                f"{source} has a malformed entry {str(key)[:40]!r}",
                expected='"layer number": [expert ids]',
                actual=repr(ids)[:100],
            )
        drop[int(key)] = tuple(sorted(ids))
    return dict(sorted(drop.items()))
