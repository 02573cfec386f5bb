"""Union, intersection and composition of drop maps.

Invariants: pure functions; `combine` does not depend on the order of the maps. All layers must keep equally many
experts, which a union or intersection alone does not ensure: the layer that keeps the most decides, and the others are
filled up with the experts that most of the maps keep, then those of higher score (if scores are given), then those of
lower id. Filling up only adds experts, so a union contains everything that any map keeps.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trimoe.choose.dropmap import DropMap
from trimoe.choose.narrowing import Narrowing
from trimoe.errors import MapError

if TYPE_CHECKING:
    import numpy as np

How = Literal["union", "intersection"]


def combine(
    maps: Sequence[DropMap], how: How, *, keep: int | None = None, scores: "np.ndarray | None" = None
) -> DropMap:
    """Keep the experts that any map (`union`) or every map (`intersection`) keeps, equally many in every layer.

    `keep` is the number of experts per layer, by default the most that a layer needs. `scores` [layer, expert], higher
    is better, decide which experts are filled in; the metadata of the result list them. Raises `MapError` for maps of
    different models, or if `keep` is less than a layer needs.
    """
    count, model = _common(maps)
    if any(m.narrow is not None for m in maps):
        raise MapError(
            "maps that narrow experts cannot be combined",
            expected="maps of whole experts",
            remedy="combine maps made without --width, and narrow the result",
        )
    layers = _layers(maps)
    dropped = [{layer: set(m.drop.get(layer, ())) for layer in layers} for m in maps]
    gone = {
        layer: set.intersection(*(d[layer] for d in dropped))
        if how == "union"
        else set.union(*(d[layer] for d in dropped))
        for layer in layers
    }
    # A layer in which no map drops anything has no experts, unless no map drops anything anywhere.
    routed = [layer for layer in layers if any(d[layer] for d in dropped)] or layers
    target = min(len(gone[layer]) for layer in routed)
    if keep is not None:
        if count is None:
            raise MapError(
                "no map records how many experts there are",
                expected="num_experts in one of them",
                remedy="make the maps with trimoe map, or leave out --keep",
            )
        if not 0 < keep <= count or count - keep > target:
            layer = min(routed, key=lambda i: len(gone[i]))
            raise MapError(
                f"the maps cannot be combined to {keep} experts per layer",
                actual=f"--keep {keep}",
                expected=f"{count - target} (layer {layer} needs them) to {count}",
                remedy="choose --keep in this range, or combine other maps",
            )
        target = count - keep
    if count == target:
        raise MapError(
            "the maps have no expert in common",
            expected="at least one in some layer",
            remedy="combine other maps, or give a number with --keep",
        )
    _check_scores(scores, gone)
    filled: dict[int, list[int]] = {}
    drop: dict[int, tuple[int, ...]] = {}
    for layer in layers:

        def order(expert: int, layer: int = layer) -> tuple[int, float, int]:
            votes = sum(expert not in d[layer] for d in dropped)
            return -votes, 0.0 if scores is None else -float(scores[layer, expert]), expert

        surplus = len(gone[layer]) - target if layer in routed else 0
        back = sorted(gone[layer], key=order)[:surplus]
        if back:
            filled[layer] = sorted(back)
        drop[layer] = tuple(sorted(gone[layer] - set(back)))
    metadata = {
        "recipe": how,
        "maps": sorted(m.content_hash for m in maps),
        "model": model,
        "filled": {str(layer): ids for layer, ids in filled.items()},
    }
    return DropMap(drop, count, metadata)


def compose(first: DropMap, second: DropMap, num_experts: int | None = None) -> DropMap:
    """One map for two successive cuts, in ids of the first map's model. `second` numbers the experts that `first` keeps
    from 0.

    `num_experts` is the count of the first map's model if the map does not record it. Raises `MapError` if the second
    map does not fit what the first leaves.
    """
    count = first.num_experts or num_experts
    if count is None:
        raise MapError(
            "the first map does not record how many experts there are",
            expected="num_experts",
            remedy="make it with trimoe map, or add num_experts to its file",
        )
    drop = {}
    for layer in _layers([first, second]):
        gone, later = first.drop.get(layer, ()), second.drop.get(layer, ())
        kept = [e for e in range(count) if e not in gone]
        if (later and (min(later) < 0 or max(later) >= len(kept))) or second.num_experts not in (None, len(kept)):
            raise MapError(
                f"the second map does not fit what the first leaves in layer {layer}",
                expected=f"ids 0..{len(kept) - 1} of {len(kept)} experts",
                actual=f"of {second.num_experts or 'an unknown number of'} experts, ids {list(later)}",
                remedy="give the maps in the order of the cuts",
            )
        drop[layer] = tuple(sorted({*gone, *(kept[i] for i in later)}))
    metadata = {
        "recipe": "composed",
        "maps": [first.content_hash, second.content_hash],
        "model": first.metadata.get("model"),
    }
    return DropMap(drop, count, metadata, _narrower(first, second, drop, count))


def _narrower(first: DropMap, second: DropMap, drop: dict[int, tuple[int, ...]], count: int) -> Narrowing | None:
    """The neurons that two successive cuts keep, in ids of the first map's model."""
    one, two = first.narrow, second.narrow
    keeps = {layer: [e for e in range(count) if e not in set(ids)] for layer, ids in drop.items()}
    if two is None:
        return None if one is None else one.only({layer: keeps[layer] for layer in one.neurons})
    if one is None:
        every = tuple(range(two.width))
        one = Narrowing({i: dict.fromkeys(range(count), every) for i in two.neurons}, two.width)
    if one.kept != two.width:
        raise MapError(
            "the second map narrows experts of another width than the first leaves",
            expected=f"{one.kept} neurons per expert",
            actual=str(two.width),
            remedy="give the maps in the order of the cuts",
        )
    return two.after(one, first.drop, count)


def _common(maps: Sequence[DropMap]) -> tuple[int | None, str | None]:
    """Number of experts and model fingerprint that the maps agree on, as far as they record them."""
    counts = {m.num_experts for m in maps} - {None}
    models = {m.metadata.get("model") for m in maps} - {None}
    if len(counts) > 1 or len(models) > 1:
        facts = sorted(map(str, counts)) if len(counts) > 1 else sorted(str(m)[:16] for m in models)
        raise MapError(
            "the maps are of different models",
            expected="one model",
            actual=f"{'experts' if len(counts) > 1 else 'models'} {' and '.join(facts)}",
            remedy="combine maps of one model; for successive cuts use trimoe map compose",
        )
    count = next(iter(counts), None)
    for m in maps:
        for layer, ids in m.drop.items():
            wrong = [i for i in ids if i < 0 or (count is not None and i >= count)]
            if wrong or len(set(ids)) < len(ids):
                raise MapError(
                    f"a map drops an impossible expert in layer {layer}",
                    expected="ids from 0, each once" + (f", below {count}" if count else ""),
                    actual=str(ids)[:80],
                    remedy="correct the map",
                )
    return count, next(iter(models), None)


def _layers(maps: Sequence[DropMap]) -> list[int]:
    """The layers of all maps. A layer that one map lacks must drop nothing in the others, because it has no experts."""
    layers = sorted(set().union(*(m.drop for m in maps)))
    for layer in layers:
        if any(layer not in m.drop for m in maps) and any(m.drop.get(layer) for m in maps):
            raise MapError(
                "the maps cover different layers",
                expected="the same layers in all",
                actual=f"layer {layer} is missing in one",
                remedy="combine maps of one model",
            )
    return layers


def _check_scores(scores: "np.ndarray | None", gone: dict[int, set[int]]) -> None:
    highest = max((e for ids in gone.values() for e in ids), default=0)
    if scores is not None and (scores.shape[0] <= max(gone) or scores.shape[1] <= highest):
        raise MapError(
            "the statistics are of another model",
            expected=f"layer {max(gone)}, expert {highest}",
            actual=f"{scores.shape[0]} layers of {scores.shape[1]} experts",
            remedy="use statistics of the maps' model",
        )
