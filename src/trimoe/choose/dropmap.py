"""The drop map: which experts are dropped in each layer, its file, and the checks that it fits a model (ids, top-k).

Invariants of a validated map: ids are unique, sorted and in range; every layer keeps the same number of experts,
because config.json has one count for all layers. Not guaranteed: that dropping these experts leaves a useful model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimoe.choose.narrowing import Narrowing, parse_narrowing
from trimoe.errors import MapError
from trimoe.io.canonical import canonical_json, sha256_json
from trimoe.io.frames import data_frame
from trimoe.io.jsonfile import read_json, write_json
from trimoe.model.groups import Groups


@dataclass(frozen=True, eq=False, repr=False)
class DropMap:
    """`drop[layer]` are the ids of the dropped experts. Layers without experts are not in the map.

    >>> drop = trimoe.choose(stats, keep=24)
    >>> drop.save("map.json")
    >>> drop = trimoe.DropMap.load("map.json")
    >>> len(drop.drop[0]), drop.keep(0)[:3]
    (8, [1, 2, 3])
    """

    drop: dict[int, tuple[int, ...]]
    num_experts: int | None = None
    """Experts per layer before the cut, if known."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Where the map comes from: recipe, statistics, model; see `trimoe.choose.select`."""
    narrow: Narrowing | None = None
    """The neurons that the kept experts keep, if they become narrower."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DropMap):
            return NotImplemented
        return (self.drop, self.num_experts, self.metadata, self.narrow) == (
            other.drop,
            other.num_experts,
            other.metadata,
            other.narrow,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = sorted({len(ids) for ids in self.drop.values()})
        dropped = "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"
        of = "" if self.num_experts is None else f" of {self.num_experts}"
        narrower = "" if self.narrow is None else f", keeps {self.narrow.kept} of {self.narrow.width} neurons"
        return f"{type(self).__name__}({len(self.drop)} layers, drops {dropped}{of} experts{narrower})"

    def _repr_html_(self) -> str:
        """The map as a picture for notebooks: dropped experts are orange."""
        import numpy as np

        from trimoe.calibrate.stats.heatmap import heatmap_html

        return heatmap_html(repr(self), np.zeros(self._grid().shape), self._grid())

    def _grid(self) -> Any:
        """[layer of the map, expert] bool: dropped."""
        import numpy as np

        width = self.num_experts or max((i + 1 for ids in self.drop.values() for i in ids), default=1)
        grid = np.zeros((max(1, len(self.drop)), width), bool)
        for row, ids in enumerate(self.drop.values()):
            grid[row, list(ids)] = True
        return grid

    def keep(self, layer: int, num_experts: int | None = None) -> list[int]:
        """Kept ids of a layer in ascending order, which is their order in the pruned model.

        `num_experts` is needed only where the map does not know the count.
        """
        gone = set(self.drop[layer])
        return [e for e in range(num_experts or self.num_experts or 0) if e not in gone]

    @property
    def content_hash(self) -> str:
        """sha256 of the dropped experts, and of the kept neurons where there are any."""
        drop = {str(layer): list(ids) for layer, ids in self.drop.items()}
        return sha256_json(drop if self.narrow is None else {"drop": drop, "narrow": self.narrow.as_dict()})

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
            _require_ids(layer, ids, num_experts)
        counts = {len(ids) for ids in self.drop.values()}
        if len(counts) > 1:
            raise MapError(
                "the map drops unequal counts",
                expected="the same number in every layer, because config.json has one count for all layers",
                actual=f"{min(counts)} to {max(counts)}",
                remedy="make the map with trimoe map, or even it out with trimoe map combine",
            )
        if num_experts - max(counts) < top_k:
            raise MapError(
                "the map keeps fewer experts than the router selects",
                expected=f"at least {top_k} kept",
                actual=f"{num_experts - max(counts)} kept",
                remedy="drop fewer experts",
            )

    def difference(self, other: "DropMap") -> dict[str, Any]:
        """Per layer, the ids that only one of the two maps drops, and the number of swaps between them.

        Raises `MapError` when the maps cover different layers.
        """
        if self.drop.keys() != other.drop.keys():
            raise MapError(
                "the maps cover different layers",
                expected=str(sorted(self.drop)),
                actual=str(sorted(other.drop)),
                remedy="compare maps of one model",
            )
        layers = {
            str(layer): {
                "only_first": sorted(set(ids) - set(other.drop[layer])),
                "only_second": sorted(set(other.drop[layer]) - set(ids)),
            }
            for layer, ids in self.drop.items()
        }
        changed = {layer: entry for layer, entry in layers.items() if any(entry.values())}
        return {
            "swaps": sum(max(len(e["only_first"]), len(e["only_second"])) for e in changed.values()),
            "layers": changed,
        }

    def as_dict(self) -> dict[str, Any]:
        """The content of the file, JSON-ready."""
        data = {
            "drop": {str(layer): list(ids) for layer, ids in sorted(self.drop.items())},
            "num_experts": self.num_experts,
            "metadata": self.metadata,
        }
        if self.narrow is not None:
            data |= {"narrow": self.narrow.as_ranges(), "expert_width": self.narrow.width}
        return data

    def to_pandas(self) -> Any:
        """A DataFrame with one row per layer and expert: layer, expert, dropped.

        Raises `MissingPrerequisite` without pandas, `MapError` if the map does not know the number of experts.
        """
        if self.num_experts is None:
            raise MapError(
                "the map does not record the number of experts",
                expected="num_experts",
                remedy="make it with trimoe map, or add num_experts to its file",
            )
        return data_frame(
            {
                "layer": [layer for layer in self.drop for _ in range(self.num_experts)],
                "expert": [expert for _ in self.drop for expert in range(self.num_experts)],
                "dropped": self._grid().ravel(),
            }
        )

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the map as JSON, by rename. Raises `BadInput` if the file exists and `overwrite` is not set."""
        write_json(Path(path), self.as_dict(), overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str) -> "DropMap":
        """Read a map; a bare {"0": [ids]} is accepted too. Raises `MapError`."""
        path = Path(path)
        if path.is_dir() or path.suffix in (".safetensors", ".gguf"):
            raise MapError(
                f"{path} is not a drop map",
                expected="a JSON file made by `trimoe map`",
                actual="a directory" if path.is_dir() else f"a file named {path.name}",
                remedy="give the model first, then the map: trimoe prune MODEL MAP.json -o OUT",
            )
        data = read_json(path, "drop map", MapError, unique_keys=True)
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
                f"{path} has a malformed metadata.model",
                expected="a fingerprint",
                actual=repr(metadata["model"])[:80],
            )
        narrow = parse_narrowing(extra["narrow"], extra.get("expert_width"), str(path)) if "narrow" in extra else None
        return DropMap(_layers(body, str(path)), number, metadata, narrow)


def require_groups(drop_map: DropMap, groups: Groups | None, layers: Iterable[int], experts: int, top_k: int) -> None:
    """Raise `MapError` where a map cannot cut a model that routes experts in groups exactly."""
    for layer in layers if groups is not None else ():
        assert groups is not None
        if (fault := groups.fault(drop_map.drop.get(layer, ()), experts, top_k)) is not None:
            raise MapError(
                f"the map does not fit the routing in groups, in layer {layer}",
                expected=f"equally many experts dropped in each of {groups.count} groups, and enough kept in each",
                actual=fault,
                remedy="make the map from statistics of this model: trimoe map balances the groups by itself",
            )


def _require_ids(layer: int, ids: tuple[int, ...], num_experts: int) -> None:
    if len(set(ids)) != len(ids):
        twice = min(i for i in ids if ids.count(i) > 1)
        raise MapError(
            f"layer {layer} of the map lists an expert twice", expected="each id once", actual=f"expert {twice}"
        )
    if ids and (min(ids) < 0 or max(ids) >= num_experts):
        raise MapError(
            f"layer {layer} of the map lists an expert that does not exist",
            expected=f"0..{num_experts - 1}",
            actual=str([i for i in ids if not 0 <= i < num_experts]),
        )


def _require_canonical(path: Path, data: Any) -> None:
    """Only numbers that can be written again (neither NaN nor 1e400), and not nested without end."""
    try:
        canonical_json(data)
    except (ValueError, RecursionError) as exc:
        raise MapError(f"{path} is not a drop map", expected="JSON with finite numbers", actual=str(exc)[:200]) from exc


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
