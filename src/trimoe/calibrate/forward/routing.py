"""The router of a layer, and the values by which it prefers one expert to another.

How logits become scores, and what is added to them, comes from the family's data, never from class names.
"""

from dataclasses import dataclass, field
from typing import Any

from trimoe.model.family.hf import Routing


@dataclass(frozen=True)
class Router:
    """The router of one layer in a transformers model."""

    module: Any
    routing: Routing
    terms: list[tuple[Any, str]] = field(default_factory=list)
    """Module and attribute of each tensor [E] that is added to the scores before the choice. Not the tensors
    themselves, because loading a layer replaces them."""

    def preference(self, logits: Any) -> Any:
        """[tokens, E], larger for an expert that is chosen first: the scores, or the logits where the order is the
        same."""
        if not self.terms:
            return logits
        scores = logits.float().sigmoid() if self.routing.score == "sigmoid" else logits.float().softmax(-1)
        for module, attribute in self.terms:
            scores = scores + getattr(module, attribute).reshape(-1)
        return scores
