"""Protection and swaps: the experts of one layer that a cut must keep.

Pure functions of one layer at a time. The swaps after the cut leave the number of dropped experts unchanged.
"""

import json
from pathlib import Path

from trimoe.calibrate.stats.criteria import Array
from trimoe.choose.score import ascending, descending
from trimoe.errors import BadInput, MapError


def protected(score: Array, pooled: Array, top: int, floor: int | None, keep: int) -> set[int]:
    """Experts of one layer that are not dropped: the top by score and the top `floor` by pooled score.

    When these are more than `keep`, the `keep` with the highest pooled score (without a floor: score) remain.
    """
    pinned = set(descending(score)[:top])
    if floor is not None:
        pinned |= set(descending(pooled)[:floor])
    if len(pinned) > keep:
        by = pooled if floor is not None else score
        pinned = set([e for e in descending(by) if e in pinned][:keep])
    return pinned


def class_minimum(
    gone: set[int], pinned: set[int], score: Array, owners: dict[str, Array], minimum: dict[str, int]
) -> tuple[set[int], dict[str, int]]:
    """The dropped ids after swapping until each class keeps its minimum, and the classes that still keep fewer.

    Each swap keeps the class's best dropped expert and drops the lowest unpinned expert that does not bring another
    class below its own minimum. `owners[class]` is bool [E]: the experts whose best class it is. A class that owns
    fewer experts than its minimum, or has no expert to swap with, is reported with the number it keeps.
    """
    gone = set(gone)
    up, down = ascending(score), descending(score)

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
    """The dropped ids after the final override: each forced expert that was dropped takes the place of the lowest kept
    expert that is not forced. Raises `MapError`."""
    experts = len(score)
    if any(not 0 <= e < experts for e in ids):
        raise MapError(
            f"layer {layer}: force-keep names an expert that does not exist",
            expected=f"0..{experts - 1}",
            actual=str(ids),
        )
    gone = set(gone)
    up = ascending(score)
    for expert in ids:
        if expert in gone:
            out = [e for e in up if e not in gone and e not in ids]
            if not out:
                raise MapError(
                    f"layer {layer}: more experts are forced than kept",
                    expected=f"at most {experts - len(gone)}",
                    actual=str(len(set(ids))),
                    remedy="keep more experts, or force fewer",
                )
            gone = (gone - {expert}) | {out[0]}
    return gone


def read_force_keep(path: Path) -> dict[int, list[int]]:
    """Experts to keep: lines `LAYER:EXPERT` (# starts a comment), or JSON {"0": [ids]}. Raises `BadInput`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise BadInput(
            f"force-keep file {path} not found", expected="an existing file", remedy="check the path"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"force-keep file {path} is not readable", expected="UTF-8 text", actual=str(exc)[:200]) from exc
    result: dict[int, list[int]] = {}
    for layer, expert in _json_pins(text, path) if text.lstrip().startswith("{") else _line_pins(text, path):
        if expert not in result.setdefault(layer, []):
            result[layer].append(expert)
    return result


def _line_pins(text: str, path: Path) -> list[tuple[int, int]]:
    pins = []
    for at, line in enumerate(text.splitlines(), 1):
        body = line.partition("#")[0].strip()
        layer, _, expert = (word.strip() for word in body.partition(":"))
        if body and not (layer.isdecimal() and expert.isdecimal()):
            raise BadInput(f"{path}, line {at}: cannot read {line[:60]!r}", expected="LAYER:EXPERT")
        if body:
            pins.append((int(layer), int(expert)))
    return pins


def _json_pins(text: str, path: Path) -> list[tuple[int, int]]:
    try:
        return [(int(layer), _whole(e)) for layer, ids in json.loads(text).items() for e in ids]
    except (ValueError, TypeError, RecursionError) as exc:
        raise BadInput(
            f"force-keep file {path} is malformed", expected='{"layer": [expert ids]}', actual=str(exc)[:200]
        ) from exc


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not an expert id")
    return value
