"""How well the tokens of each class cover the experts."""

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import COUNT


def coverage(stats: ExpertStats, thin: int) -> dict[str, dict[str, int]]:
    """Per class: the experts of all layers, those with fewer than `thin` tokens, and those with none."""
    routed = stats.field(COUNT)[:, stats.metadata["moe_layers"]]
    return {
        name: {
            "experts": routed[i].size,
            "thin": int((routed[i] < thin).sum()),
            "unused": int((routed[i] == 0).sum()),
        }
        for i, name in enumerate(stats.classes)
    }
