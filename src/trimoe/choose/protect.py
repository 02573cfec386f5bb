"""Swaps after the cut, each of which leaves the number of dropped experts unchanged. One layer at a time, pure."""

import numpy as np

from trimoe.choose.score import Array
from trimoe.errors import MapError


def class_minimum(
    gone: set[int], pinned: set[int], score: Array, owners: dict[str, Array], minimum: dict[str, int]
) -> tuple[set[int], dict[str, int]]:
    """The dropped ids after swapping until each class keeps its minimum, and the classes that still keep fewer.

    In comes the class's best dropped expert, out goes the lowest unpinned one that does not bring another class below
    its own minimum. `owners[class]` is bool [E]: the experts whose best class it is. A class that owns fewer experts
    than its minimum, or finds no one to swap with, is reported with the number it keeps.
    """
    gone = set(gone)
    up = [int(e) for e in np.argsort(score, kind="stable")]
    down = [int(e) for e in np.argsort(-score, kind="stable")]

    def count(pattern: str) -> int:
        return sum(1 for e in up if owners[pattern][e] and e not in gone)

    def spare(expert: int) -> bool:
        return all(not owners[p][expert] or count(p) > n for p, n in minimum.items())

    for pattern, least in minimum.items():
        while count(pattern) < least:
            back = [e for e in down if e in gone and owners[pattern][e]]
            out = [e for e in up if e not in gone and e not in pinned and not owners[pattern][e] and spare(e)]
            if not back or not out:
                break
            gone = (gone - {back[0]}) | {out[0]}
    return gone, {p: count(p) for p, n in minimum.items() if count(p) < n}


def forced(gone: set[int], score: Array, ids: list[int], layer: int) -> set[int]:
    """The final override: each forced expert that was dropped takes the place of the lowest kept, unforced one."""
    experts = len(score)
    if any(not 0 <= e < experts for e in ids):
        raise MapError(
            f"layer {layer}: force-keep names an expert that does not exist",
            expected=f"0..{experts - 1}",
            actual=str(ids),
        )
    gone = set(gone)
    up = [int(e) for e in np.argsort(score, kind="stable")]
    for expert in ids:
        if expert in gone:
            out = [e for e in up if e not in gone and e not in ids]
            if not out:
                raise MapError(
                    f"layer {layer}: more experts are forced than kept",
                    expected=f"at most {experts - len(gone)}",
                    actual=str(len(set(ids))),
                )
            gone = (gone - {expert}) | {out[0]}
    return gone
