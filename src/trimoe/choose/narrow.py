"""Chooses the neurons that each kept expert keeps, by what they contribute to the layer's output.

score(neuron) = sum over classes of weight x (mean over the class's tokens of (w x activation)^2 |down column|^2), the
second moment of the neuron's contribution (HEAPr, arXiv 2509.22299). Neurons that are stored together are chosen
together, by the sum of their scores. Among equals the lower id comes first.
"""

from dataclasses import replace
from math import lcm

import numpy as np

from trimoe.calibrate.stats.expert_stats import ExpertStats
from trimoe.calibrate.stats.fields import NEURON_CONTRIBUTION, kind_field
from trimoe.calibrate.text.windows import POSITIONS, PROMPT
from trimoe.choose.narrowing import Narrowing
from trimoe.choose.selection import Selection
from trimoe.errors import MapError, StatsError

ROW = 8
"""Widths are multiples of this: torch's grouped products need rows of whole 16 bytes, and transformers does not check
(torch 2.13.0, transformers 5.23.0: RuntimeError in the forward pass)."""


def narrowed(made: Selection, stats: ExpertStats, width: int, group: int | None = None) -> Selection:
    """`made` with the best `width` neurons of every kept expert, in groups of `group` neurons (default: what the
    statistics record of the checkpoint's layout, else 1).

    Raises `StatsError` without neuron statistics, `MapError` for an impossible width.
    """
    if NEURON_CONTRIBUTION not in stats.wide:
        raise StatsError(
            "these statistics say nothing about neurons",
            expected=f"the field {NEURON_CONTRIBUTION}",
            remedy="calibrate with --neurons",
        )
    unit = group or int(stats.metadata.get("neuron_unit") or 1)
    whole, step = stats.wide[NEURON_CONTRIBUTION].shape[3], lcm(unit, ROW)
    if not 0 < width <= whole or width % step or whole % unit:
        raise MapError(
            f"the experts cannot be made {width} neurons wide",
            expected=f"a multiple of {step} up to {whole}",
            actual=str(width),
            remedy="choose another --width",
        )
    if width == whole:
        return made
    scores = neuron_scores(stats, made.scores.weights)
    neurons = {}
    for layer in made.drop:
        grouped = scores[layer].reshape(scores.shape[1], whole // unit, unit).sum(2)
        best = np.sort(np.argsort(-grouped, axis=1, kind="stable")[:, : width // unit], axis=1)
        ids = (best[:, :, None] * unit + np.arange(unit)).reshape(len(best), width)
        neurons[layer] = {expert: tuple(ids[expert].tolist()) for expert in made.keep(layer)}
    metadata = {**made.metadata, "width": width, "width_before": whole, "neuron_group": unit}
    return replace(made, narrow=Narrowing(neurons, whole), metadata=metadata)


def neuron_scores(stats: ExpertStats, weights: dict[str, float]) -> np.ndarray:
    """float64 [layer, expert, neuron]: the weighted mean over classes of each neuron's contribution per token."""
    total = np.zeros(stats.wide[NEURON_CONTRIBUTION].shape[1:])
    tokens = stats.field("tokens").max((1, 2))
    if (prompts := stats.fields.get(kind_field(POSITIONS[PROMPT], "tokens"))) is not None:
        replies = tokens - prompts.max((1, 2))
        tokens = np.where(replies > 0, replies, tokens)
    for number, name in enumerate(stats.classes):
        if weights.get(name) and tokens[number]:
            total += weights[name] * stats.wide[NEURON_CONTRIBUTION][number] / tokens[number]
    return total
