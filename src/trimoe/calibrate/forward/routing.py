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

    scales: list[tuple[Any, str]] = field(default_factory=list)
    """The same for each tensor [E] that multiplies the weights after the choice."""

    def scale(self, experts: int, device: Any) -> Any:
        """float32 [E]: what multiplies each expert's weight after the choice."""
        import torch

        result = torch.ones(experts, device=device)
        for module, attribute in self.scales:
            result = result * getattr(module, attribute).reshape(-1).float()
        return result

    def correction(self) -> Any:
        """[E] what is added to the scores before the choice; None if nothing is."""
        terms = [getattr(module, attribute).reshape(-1) for module, attribute in self.terms]
        return sum(terms[1:], terms[0]) if terms else None

    def preference(self, logits: Any) -> Any:
        """[tokens, E], larger for an expert that is chosen first: the scores, or the logits where the order is the
        same."""
        if not self.terms:
            return logits
        scores = logits.float().sigmoid() if self.routing.score == "sigmoid" else logits.float().softmax(-1)
        for module, attribute in self.terms:
            scores = scores + getattr(module, attribute).reshape(-1)
        return scores
