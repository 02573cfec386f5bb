"""Criteria: how much each expert contributes to each class, computed from measured fields.

Sources: `contribution` is section 5 of the protocol; `reap` is the mean of w_t |o_t| over the expert's tokens (REAP,
arXiv 2510.13999); `ean` is the sum of |o_t|. Scores are float64 [class, layer, expert].
Invariant: a field that was never measured is refused, not ranked. Files with routing counts alone carry norms that are
all zero, so the presence of a field proves nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import RECON_RANK
from trimoe.errors import RecipeError, StatsError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]
DEFAULTS = ("contribution", "reap", "frequency")
"""Criteria that are tried in this order where none is named."""
ALPHA = 2.0
"""Weight of wnorm in the contribution score of the published recipes."""


def _per_token(total: Array, count: Array) -> Array:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


CRITERIA: dict[str, tuple[tuple[str, ...], Callable[[ExpertStats, float], Array]]] = {
    # name: (fields that must not be all zero, score per class, layer and expert from the statistics and alpha)
    "contribution": (("wnorm", "tc"), lambda s, alpha: alpha * s.field("wnorm") + s.field("tc")),
    "wnorm": (("wnorm",), lambda s, _: s.field("wnorm").copy()),
    "frequency": (("tc",), lambda s, _: s.field("tc").copy()),
    "reap": (("reap_sum", "tc"), lambda s, _: _per_token(s.field("reap_sum"), s.field("tc"))),
    "recon": ((RECON_RANK,), lambda s, _: s.field(RECON_RANK).copy()),
    "ean": (("ean_sum",), lambda s, _: s.field("ean_sum").copy()),
}


def require_measured(stats: ExpertStats, criterion: str) -> tuple[str, ...]:
    """The fields that a criterion needs. Raises `StatsError` if one is absent or zero everywhere in a class, and
    `RecipeError` for an unknown criterion."""
    if criterion not in CRITERIA:
        raise RecipeError(f"unknown criterion {criterion}", expected=", ".join([*CRITERIA, "random"]), actual=criterion)
    needed = CRITERIA[criterion][0]
    for name in needed:
        values = stats.field(name)
        for i, class_name in enumerate(stats.classes):
            if not np.any(values[i]):
                raise StatsError(
                    f"field {name} of class {class_name} is zero everywhere: it was never measured",
                    expected=f"measured {name}",
                    remedy="calibrate again, leave the class out, or use --criterion frequency",
                )
    return needed


def criterion_scores(stats: ExpertStats, by: str | None = None) -> tuple[str, Array]:
    """(criterion, its scores [C, L, E]); by default the first criterion whose fields were measured.

    Values that are not finite are kept, so that they can be reported. Raises `UsageError` for an unknown criterion and
    `StatsError` if nothing was measured.
    """
    if by is not None and by not in CRITERIA:
        raise UsageError(f"unknown criterion {by}", expected=", ".join(CRITERIA), actual=by, remedy="correct --by")
    for name in [by] if by else [*DEFAULTS, *CRITERIA]:
        try:
            require_measured(stats, name)
        except StatsError:
            if by:
                raise
            continue
        return name, CRITERIA[name][1](stats, ALPHA)
    raise StatsError(
        "the statistics hold no field by which experts can be compared",
        expected="wnorm, tc or reap_sum",
        actual=", ".join(sorted(stats.fields)),
        remedy="calibrate again",
    )
