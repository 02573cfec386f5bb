"""The router of a layer, and by what it prefers one expert to another.

The family's data says what turns its logits into scores and what is added to them; no class names.
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
    """Module and attribute of each tensor of E values that is added to the scores before the choice. Not the tensors
    themselves: they are replaced whenever a layer is loaded."""

    def preference(self, logits: Any) -> Any:
        """[tokens, E], larger for an expert chosen earlier: the scores, or the logits where both order alike."""
        if not self.terms:
            return logits
        scores = logits.float().sigmoid() if self.routing.score == "sigmoid" else logits.float().softmax(-1)
        for module, attribute in self.terms:
            scores = scores + getattr(module, attribute).reshape(-1)
        return scores
