"""Which neurons each kept expert keeps: the second part of a map that makes experts narrower.

A neuron of an expert is one column of its down projection with the rows of gate and up that feed it. Invariants of a
checked narrowing: every expert of every layer keeps equally many neurons, because config.json has one width; ids are
unique, ascending and in range.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trimoe.errors import MapError

Neurons = Mapping[int, Mapping[int, tuple[int, ...]]]
"""Kept neuron ids by layer and expert, both numbered as in the original."""


@dataclass(frozen=True)
class Narrowing:
    """The kept neurons of experts that were `width` wide."""

    neurons: Neurons
    width: int

    @property
    def kept(self) -> int:
        """Neurons per expert after the cut."""
        return len(next(iter(next(iter(self.neurons.values())).values())))

    def of(self, layer: int, expert: int) -> tuple[int, ...]:
        """Kept neurons of one expert, ascending."""
        return self.neurons[layer][expert]

    def check(self, keeps: Mapping[int, Iterable[int]], width: int) -> None:
        """Raise `MapError` unless this covers exactly the kept experts `keeps` of a model whose experts are `width`
        wide."""
        if self.width != width:
            raise MapError(
                "the map narrows experts of another width",
                expected=f"{width} neurons per expert",
                actual=f"made for {self.width}",
                remedy="use the map of this model",
            )
        counts = set()
        for layer, experts in keeps.items():
            chosen = self.neurons.get(layer, {})
            if set(chosen) != set(experts):
                odd = sorted(set(chosen) ^ set(experts))[:5]
                raise MapError(
                    f"the map does not narrow exactly the experts that layer {layer} keeps",
                    expected="the kept neurons of every kept expert, and of no other",
                    actual=f"experts {odd} are in one of the two",
                    remedy="make the map with trimoe map --width",
                )
            for expert, ids in chosen.items():
                if list(ids) != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] < width):
                    raise MapError(
                        f"layer {layer}, expert {expert} of the map has impossible neurons",
                        expected=f"ids 0..{width - 1}, ascending, each once",
                        actual=str(ids)[:80],
                    )
                counts.add(len(ids))
        if extra := sorted(set(self.neurons) - set(keeps)):
            raise MapError(
                f"the map narrows layer {extra[0]}, which has no experts", remedy="use the map of this model"
            )
        if len(counts) != 1 or 0 in counts:
            raise MapError(
                "the map keeps unequal numbers of neurons",
                expected="the same number in every expert, because config.json has one width",
                actual=f"{min(counts, default=0)} to {max(counts, default=0)}",
                remedy="make the map with trimoe map --width",
            )

    def as_dict(self) -> dict[str, Any]:
        """{layer: {expert: [ids]}}, JSON-ready."""
        return {str(i): {str(e): list(ids) for e, ids in sorted(of.items())} for i, of in sorted(self.neurons.items())}

    def as_ranges(self) -> dict[str, Any]:
        """The same with ids as text such as "0-3,7": a thirtieth of the size."""
        return {
            str(i): {str(e): to_ranges(ids) for e, ids in sorted(of.items())} for i, of in sorted(self.neurons.items())
        }

    def after(self, first: "Narrowing", drop: Mapping[int, tuple[int, ...]], experts: int) -> "Narrowing":
        """This narrowing of a model that `first` had narrowed, in ids of the original. `drop` are the experts dropped
        by the first cut, `experts` their number before it."""
        kept = {i: [e for e in range(experts) if e not in set(drop[i])] for i in self.neurons}
        return Narrowing(
            {
                i: {kept[i][e]: tuple(first.of(i, kept[i][e])[n] for n in ids) for e, ids in of.items()}
                for i, of in self.neurons.items()
            },
            first.width,
        )

    def only(self, keeps: Mapping[int, Iterable[int]]) -> "Narrowing":
        """The part for these experts."""
        return Narrowing({i: {e: self.neurons[i][e] for e in experts} for i, experts in keeps.items()}, self.width)


def parse_narrowing(data: Any, width: Any, source: str) -> Narrowing:
    """The narrowing in a map file or drop record: lists of ids, or ranges as text. Raises `MapError`."""
    if type(width) is not int or not 0 < width < 1 << 24:
        raise MapError(
            f"{source} narrows experts without saying how wide they were",
            expected='"expert_width": a whole number',
            actual=repr(width)[:40],
        )
    if not isinstance(data, dict) or not data:
        raise _malformed(source, data)
    neurons: dict[int, dict[int, tuple[int, ...]]] = {}
    for layer, experts in data.items():
        if not isinstance(experts, dict):
            raise _malformed(source, experts)
        neurons[_number(layer, source)] = {
            _number(expert, source): _ids(ids, width, source) for expert, ids in experts.items()
        }
    return Narrowing(dict(sorted(neurons.items())), width)


def to_ranges(ids: Iterable[int]) -> str:
    """Ascending ids as text: 0, 1, 2, 5 is "0-2,5"."""
    parts = []
    for _, run in groupby(enumerate(ids), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ",".join(parts)


def _ids(value: Any, width: int, source: str) -> tuple[int, ...]:
    if isinstance(value, str):
        found: list[int] = []
        for part in value.split(","):
            first, dash, last = part.partition("-")
            low = _number(first, source)
            high = _number(last, source) if dash else low
            if not low <= high < width:
                raise _malformed(source, value)
            found += range(low, high + 1)
        return tuple(found)
    if not isinstance(value, list) or any(type(i) is not int for i in value):
        raise _malformed(source, value)
    return tuple(value)


def _number(text: str, source: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and str(int(text)) == text):
        raise _malformed(source, text)
    return int(text)


def _malformed(source: str, value: Any) -> MapError:
    return MapError(
        f"{source} has a malformed narrowing",
        expected='"narrow": {"layer": {"expert": [kept neuron ids]}}',
        actual=repr(value)[:80],
        remedy="make the map with trimoe map --width",
    )
