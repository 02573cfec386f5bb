"""Routing in groups: experts are divided into groups, and a token's experts are chosen among the best groups only.

A cut is exact exactly when every group loses the same number of experts, because the model's code divides the experts
that remain into equal groups; when each group keeps as many as its score is made of; and when the chosen groups keep at
least top-k experts.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Groups:
    """`count` groups of equal size, of which `chosen` are used for a token. A group's score is made of its `scored`
    best experts."""

    count: int
    chosen: int
    scored: int = 1

    def of(self, expert: int, experts: int) -> int:
        """The group of one of `experts` experts."""
        return expert * self.count // experts

    def fault(self, drop: Iterable[int], experts: int, top_k: int) -> str | None:
        """Why a layer of `experts` experts cannot lose these exactly, or None."""
        if experts % self.count:
            return f"{experts} experts are not {self.count} equal groups"
        lost = [0] * self.count
        for expert in drop:
            lost[self.of(expert, experts)] += 1
        if len(set(lost)) > 1:
            return f"its {self.count} groups lose {', '.join(map(str, lost))} experts"
        kept = experts // self.count - lost[0]
        if kept < self.scored:
            return f"a group keeps {kept} experts, and its score is made of its {self.scored} best"
        if self.chosen * kept < top_k:
            return f"{self.chosen} groups of {kept} experts are fewer than the {top_k} that a token needs"
        return None
