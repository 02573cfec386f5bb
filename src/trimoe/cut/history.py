"""The drop record, expert_drop_metadata.json: every cut that led to a model, in the published layout.

A record describes one cut relative to its source. If the source was itself pruned, its record is nested as `previous`,
and `composed` describes all cuts together relative to the original. A model that was pruned twice can therefore be
certified against either, and an earlier state can be made again.
Not guaranteed: that a record is true; certify compares it with the bytes.
"""

from pathlib import Path
from typing import Any

from trimoe.choose.combine import compose
from trimoe.choose.dropmap import DropMap
from trimoe.choose.narrowing import parse_narrowing
from trimoe.errors import MapError
from trimoe.io.canonical import canonical_json
from trimoe.io.jsonfile import read_json
from trimoe.model.files import METADATA


def make_record(
    base_model: str, fingerprint: str, drop_map: DropMap, previous: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of cutting `drop_map` out of a model.

    The map's layers are exactly those with experts, and its `num_experts` is known. `previous` is the source's own
    record. Raises `MapError` if that is not usable.
    """
    record = {"base_model": base_model, "base_fingerprint": fingerprint, **_facts(drop_map)}
    if previous is not None:
        whole = _composed([*steps(previous), drop_map])
        oldest = _oldest(previous)
        record["previous"] = previous
        record["composed"] = {
            "base_model": oldest.get("base_model", "unknown"),
            "base_fingerprint": oldest.get("base_fingerprint"),
            **_facts(whole),
        }
    return record


def _facts(drop_map: DropMap) -> dict[str, Any]:
    kept = {layer: drop_map.keep(layer) for layer in drop_map.drop}
    narrow = drop_map.narrow
    neurons = {} if narrow is None else {"original_width": narrow.width, "per_layer_neurons": narrow.as_ranges()}
    return {
        "original_experts": drop_map.num_experts,
        "target_experts": len(next(iter(kept.values()), ())),
        "per_layer_keep": {str(layer): ids for layer, ids in kept.items()},
        "per_layer_drop": {str(layer): list(ids) for layer, ids in drop_map.drop.items()},
        **neurons,
    }


def read_record(place: Path) -> dict[str, Any]:
    """Read the record of a pruned model's directory, or the record file itself. Raises `MapError`."""
    data = read_json(place / METADATA if place.is_dir() else place, "drop metadata", MapError)
    if not isinstance(data, dict):
        raise MapError(
            f"{METADATA} is not a drop record", expected="a JSON object", remedy="remove or restore the file"
        )
    try:
        canonical_json(data)
    except (ValueError, RecursionError) as exc:
        raise MapError(f"{METADATA} is not a drop record", expected="finite numbers", actual=str(exc)[:80]) from exc
    return data


def steps(record: dict[str, Any], experts: int | None = None) -> list[DropMap]:
    """The cuts that a record describes, oldest first, each as a map with its own expert count.

    `experts` is the count before the last cut, for records that do not state it. Raises `MapError` for a record that
    contradicts itself.
    """
    found: list[DropMap] = []
    current: Any = record
    while current is not None:
        step = _step(current, experts)
        if found and len(step.keep(min(step.drop))) != found[0].num_experts:
            raise MapError(
                f"{METADATA}: the recorded cuts do not follow one another",
                expected=f"{found[0].num_experts} experts after the earlier cut",
                actual=str(len(step.keep(min(step.drop)))),
            )
        found.insert(0, step)
        current, experts = current.get("previous"), None
    stated = record.get("composed")
    whole = _composed(found)
    if stated is not None and (_step(stated, None).drop, _step(stated, None).narrow) != (whole.drop, whole.narrow):
        raise MapError(f"{METADATA}: the composed map is not the composition of its cuts")
    return found


def map_from(record: dict[str, Any], experts: int, width: int | None = None) -> DropMap | None:
    """The map from a model of `experts` experts (`width` neurons each) to the recorded one; None if no recorded state
    was like that.

    Of several such states the earliest is meant: cuts that drop nothing lie between them."""
    cuts = steps(record, experts)
    for i, step in enumerate(cuts):
        whole = _composed(cuts[i:])
        fits = width is None or whole.narrow is None or whole.narrow.width == width
        if step.num_experts == experts and fits:
            return whole
    return None


def original(record: dict[str, Any], undo: int = 0) -> DropMap:
    """The map relative to the original, as it was `undo` cuts ago. Raises `MapError` if there were fewer cuts."""
    cuts = steps(record)
    if not 0 <= undo <= len(cuts):
        raise MapError(f"{undo} cuts cannot be undone", expected=f"0 to {len(cuts)}", actual=f"{len(cuts)} recorded")
    rest = cuts[: len(cuts) - undo]
    whole = _composed(rest) if rest else DropMap(dict.fromkeys(cuts[0].drop, ()), cuts[0].num_experts)
    metadata = {
        "recipe": "recorded",
        "cuts": len(rest),
        "undone": undo,
        "model": _oldest(record).get("base_fingerprint"),
    }
    return DropMap(whole.drop, whole.num_experts, metadata, whole.narrow)


def _composed(cuts: list[DropMap]) -> DropMap:
    whole = cuts[0]
    for cut in cuts[1:]:
        whole = compose(whole, cut)
    return whole


def _oldest(record: dict[str, Any]) -> dict[str, Any]:
    while record.get("previous") is not None:
        record = record["previous"]
    return record


def _step(data: Any, experts: int | None) -> DropMap:
    """One cut of a record, checked for consistency."""
    drop = data.get("per_layer_drop") if isinstance(data, dict) else None
    keep = data.get("per_layer_keep") if isinstance(data, dict) else None
    if not isinstance(drop, dict) or not isinstance(keep, dict) or not drop:
        raise MapError(
            f"{METADATA} has no per_layer_drop and per_layer_keep", expected="objects of layer -> expert ids"
        )
    dropped = {layer: tuple(sorted(ids)) for layer, ids in _ids(drop).items()}
    kept = _ids(keep)
    count = data.get("original_experts", experts)
    if type(count) is not int or not 0 < count <= 1 << 20:
        raise MapError(f"{METADATA} has wrong expert counts", expected="a number of experts", actual=repr(count)[:40])
    target = data.get("target_experts", count - len(next(iter(dropped.values()))))
    for layer, ids in dropped.items():
        if count - len(ids) != target:
            raise MapError(
                f"{METADATA} has wrong expert counts",
                expected=f"{count} -> {target}",
                actual=f"{count} -> {count - len(ids)} in layer {layer}",
            )
        if kept.get(layer) != [e for e in range(count) if e not in ids] or len(set(ids)) != len(ids):
            raise MapError(f"{METADATA}: the kept and dropped experts of layer {layer} do not add up to all experts")
    narrow = None
    if "per_layer_neurons" in data:
        narrow = parse_narrowing(data["per_layer_neurons"], data.get("original_width"), METADATA)
        narrow.check({layer: kept[layer] for layer in dropped}, narrow.width)
    return DropMap(dict(sorted(dropped.items())), count, narrow=narrow)


def _ids(layers: dict[str, Any]) -> dict[int, list[int]]:
    """{"0": [ids]} with whole numbers."""
    for layer, ids in layers.items():
        if (
            not (layer.isascii() and layer.isdecimal() and len(layer) < 8)
            or not isinstance(ids, list)
            or any(type(i) is not int for i in ids)
        ):
            raise MapError(
                f"{METADATA} has malformed expert ids",
                expected='"layer number": [expert ids]',
                actual=f"{layer[:40]!r}: {str(ids)[:100]}",
            )
    return {int(layer): ids for layer, ids in layers.items()}
