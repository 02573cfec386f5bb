"""The result of choosing: a drop map together with the scores behind it and the reason for each expert.

Invariant: everything is what the choice itself used; nothing is computed a second time.
"""

from dataclasses import dataclass
from typing import Any, Literal

from trimoe.calibrate.stats.criteria import Array
from trimoe.choose.dropmap import DropMap
from trimoe.choose.recipe import Recipe, resolve
from trimoe.choose.score import Scores, descending
from trimoe.errors import MapError

Reason = Literal["protected", "floor", "class minimum", "forced", "ranked"]
"""What decided about an expert. protected: among the best by score; floor: among the best by pooled score; class
minimum: swapped so that a class keeps its minimum; forced: swapped for a forced keep; ranked: its score alone."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Selection(DropMap):
    """A drop map and how it came about. Rows of the arrays are the layers of `drop`, in order."""

    recipe: Recipe
    """The recipe as it was applied."""
    scores: Scores
    """Aggregate [L, E] and normalised [C, L, E] scores, class weights."""
    pooled: Array | None
    """[L, E] pooled scores, or None without a floor."""
    reasons: dict[int, tuple[Reason, ...]]
    """layer -> the reason for each expert, kept or dropped."""
    num_layers: int
    """Layers of the model, those without experts included."""

    def explain(self, layer: int, expert: int) -> dict[str, Any]:
        """Score, rank (1 is best), class scores and protections of one expert, JSON-ready. Raises `MapError`."""
        numbers, experts = list(self.drop), self.scores.aggregate.shape[1]
        if not (layer in numbers and 0 <= expert < experts):
            dense = 0 <= layer < self.num_layers and layer not in numbers
            raise MapError(
                f"there is no expert {layer}:{expert}",
                expected=f"0..{self.num_layers - 1}:0..{experts - 1}",
                actual=f"layer {layer} has no experts" if dense else "",
            )
        row, scores = numbers.index(layer), self.scores
        rank = descending(scores.aggregate[row]).index(expert) + 1
        names = list(scores.weights) if len(scores.normalised) == len(scores.weights) else ["all"]
        result: dict[str, Any] = {
            "layer": layer,
            "expert": expert,
            "dropped": expert in self.drop[layer],
            "reason": self.reasons[layer][expert],
            "score": float(scores.aggregate[row, expert]),
            "rank": rank,
            "of": experts,
            "protected_by_rank": rank <= resolve(self.recipe.protect_top, experts),
            "classes": {
                name: {"normalised": float(scores.normalised[i, row, expert]), "weight": scores.weights.get(name, 1.0)}
                for i, name in enumerate(names)
            },
            "lowest_kept_score": self.metadata["layers"][row]["lowest_kept"],
        }
        floors = self.metadata.get("floors")
        if floors and self.pooled is not None:
            place = descending(self.pooled[row]).index(expert) + 1
            result |= {"pooled_rank": place, "floor": floors[row], "protected_by_floor": place <= floors[row]}
        return result

    def to_pandas(self) -> Any:
        """A DataFrame with one row per layer and expert: layer, expert, dropped, score, reason.

        Raises `MissingPrerequisite` without pandas.
        """
        return (
            super()
            .to_pandas()
            .assign(
                score=self.scores.aggregate.ravel(),
                reason=[why for reasons in self.reasons.values() for why in reasons],
            )
        )

    def _repr_html_(self) -> str:
        """Scores as a picture for notebooks: darker is higher within a layer, dropped experts are orange."""
        from trimoe.calibrate.stats.heatmap import heatmap_html

        return heatmap_html(f"{self!r} by {self.recipe.name}", self.scores.aggregate, self._grid())
