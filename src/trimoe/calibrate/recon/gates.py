"""How a router's logits become the weights of the chosen experts when some experts are gone.

Three forms cover the families: scores renormalised over the chosen experts, scores normalised over all experts that are
left (a softmax without renormalisation), and scores as they are. Which one a layer uses is found by comparing them with
the weights that the model itself applied, so a router that does something else is refused, not approximated.
"""

from dataclasses import dataclass
from typing import Any, Literal

from trimoe.errors import CalibrationError

Form = Literal["chosen", "all", "none"]
_TOLERANCE = {4: 1e-3, 2: 3e-2}
"""Relative difference allowed between the model's weights and the form's, by bytes of the forward pass's type."""


@dataclass(frozen=True)
class Gates:
    """Of T tokens: `score` [T, E] before normalisation, `scale` [E] and a common factor in it, `order` [T, E] the
    experts from the most to the least preferred."""

    score: Any
    scale: Any
    order: Any
    form: Form
    correction: Any = None
    """[E] added to a softmax over the experts that are left, before the choice: the order then depends on them."""

    def order_of(self, tokens: Any, kept: Any) -> Any:
        """[n, E] experts of these tokens from the most to the least preferred; those not in `kept` anywhere."""
        if self.correction is None:
            return self.order[tokens]
        score = self.score[tokens].double() * kept
        preference = score / score.sum(1, keepdim=True) + self.correction
        return preference.argsort(dim=1, descending=True, stable=True)


def fit(
    logits: Any,
    preference: Any,
    index: Any,
    weight: Any,
    scale: Any,
    score: str,
    itemsize: int,
    where: str,
    correction: Any = None,
) -> Gates:
    """The gates of tokens whose router made `logits` [T, E] and chose `index` [T, k] with `weight` [T, k].

    `scale` [E] multiplies the weights after normalisation, `correction` [E] is part of `preference`. Raises
    `CalibrationError` if no form explains the choice.
    """
    import torch

    logits, weight = logits.double(), weight.double()
    order = preference.double().argsort(dim=1, descending=True, stable=True)
    k = index.shape[1]
    if _share_of_other_choices(order[:, :k], index) > 0.01:  # ties of a coarse type may be decided differently
        raise _unknown(where, "the largest scores are not the experts that it chose")
    raw = logits.sigmoid() if score == "sigmoid" else (logits - logits.amax(1, keepdim=True)).exp()
    plain = (raw * scale.double()).gather(1, index)
    totals = {"chosen": raw.gather(1, index).sum(1), "all": raw.sum(1), "none": torch.ones_like(raw[:, 0])}
    worst = {}
    for form, total in totals.items():
        ratio = weight / (plain / total[:, None])
        worst[form] = float((ratio / ratio.median() - 1).abs().quantile(0.999))
        if worst[form] <= _TOLERANCE[itemsize]:
            shift = correction.double() if correction is not None and score == "softmax" else None
            factor = (scale.double() * ratio.median()).float()
            return Gates(raw.float(), factor, order, form, shift)  # type: ignore[arg-type]
    raise _unknown(where, f"its weights differ by {min(worst.values()):.1%} from those of the forms known")


def _share_of_other_choices(one: Any, other: Any) -> float:
    return float((one.sort(1).values != other.sort(1).values).any(1).double().mean())


def _unknown(where: str, why: str) -> CalibrationError:
    return CalibrationError(
        f"the router of {where} cannot be reconstructed: {why}",
        expected="the experts with the largest scores, weighted by a softmax or sigmoid",
        actual=why,
        remedy="calibrate without reconstruction (--recon 0), and use another recipe",
    )
