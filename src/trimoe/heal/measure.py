"""Fits a healing on one part of the text and measures it on the other. Needs torch.

Invariants: only the final comparison reads the held-out part; it never chooses a factor or a step. Both comparisons
(before, after) use the same tokens, and the interval of their difference is paired by document.
"""

from dataclasses import dataclass, field
from typing import Any

from trimoe.calibrate.divergence import Divergence, Text, interval
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.text.calibration import CalibrationSet
from trimoe.calibrate.text.split import digests, require_disjoint, split
from trimoe.calibrate.text.tokenise import tokenise
from trimoe.calibrate.text.windows import Windows
from trimoe.heal.edit import Edit, factor_edits
from trimoe.heal.router import Steps, recalibrate
from trimoe.heal.write import Healing, require_related
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Plan:
    """What to do: `alphas` has one factor, or several to choose from on the calibration part."""

    method: str
    alphas: tuple[float, ...] = (1.2,)
    on: str = "down"
    steps: Steps = field(default_factory=Steps)
    device: str = "cpu"


def parts(base: Checkpoint, chosen: CalibrationSet, held: CalibrationSet | None) -> tuple[Windows, Windows]:
    """(calibration, held-out) windows that share no document. Raises `CalibrationError`."""
    windows = tokenise(base, chosen, 1)
    if held is None:
        return split(windows)
    other = tokenise(base, held, 1)
    require_disjoint(windows, other)
    return windows, other


def edits_of(pruned: Checkpoint, plan: Plan) -> list[Edit]:
    """The edits of the first factor. Raises `CheckpointError` if the family lacks what the method changes."""
    if plan.method == "router":
        return []
    return factor_edits(pruned, plan.method, plan.alphas[0], plan.on)


def fit_and_measure(
    base: Checkpoint, pruned: Checkpoint, plan: Plan, fit: Windows, held: Windows, progress: Progress | None = None
) -> Healing:
    """Fit or choose the change and measure it. Writes nothing. Raises `CheckpointError` for models that do not fit."""
    require_related(base, pruned)
    edits_of(pruned, plan)
    tell = progress or (lambda done, total, note: None)
    one = LayerModel(base, plan.device, "float32")
    two = LayerModel(pruned, plan.device, "float32")
    details: dict[str, Any] = {}
    settings: dict[str, Any] = {"set": fit.set_hash, "held_out": held.set_hash}
    if plan.method == "router":
        fits = recalibrate(one, two, Text(fit), plan.steps, tell)
        edits = [f.edit for f in fits]
        settings |= {"passes": plan.steps.passes, "rate": plan.steps.rate, "decay": plan.steps.decay}
        details["layers"] = [
            {"layer": f.edit.layer, "error_before": f.before, "error_after": f.after, "change": f.change} for f in fits
        ]
    else:
        alpha = plan.alphas[0]
        if len(plan.alphas) > 1:
            details["sweep"] = _sweep(one, two, pruned, plan, fit, tell)
            alpha = min(details["sweep"], key=lambda row: float(row["kl"]))["alpha"]
        edits = factor_edits(pruned, plan.method, alpha, plan.on)
        settings |= {"alpha": alpha} | ({"on": plan.on} if plan.method == "shared-alpha" else {})
    text = Text(held)
    first = text.through(one, tell, "held-out text, unpruned")
    one.load_head()
    before = _against(one, first, two, text, [], tell, "held-out text, before")
    after = _against(one, first, two, text, edits, tell, "held-out text, after")
    measured = comparison(before, after, text.divergence(one, first, one, first))
    details["documents"] = {"fit": len(digests(fit)), "held_out": len(digests(held))}
    return Healing(base, pruned, plan.method, settings, edits, measured, details)


def _against(
    one: LayerModel, first: list[Any], two: LayerModel, text: Text, edits: list[Edit], tell: Progress, note: str
) -> Divergence:
    two.edits = {edit.info.name: edit.whole for edit in edits}
    second = text.through(two, tell, note)
    two.load_head()
    return text.divergence(one, first, two, second)


def _sweep(
    one: LayerModel, two: LayerModel, pruned: Checkpoint, plan: Plan, fit: Windows, tell: Progress
) -> list[dict[str, Any]]:
    """KL on the calibration part for each factor, with its interval."""
    text = Text(fit)
    first = text.through(one, tell, "calibration text, unpruned")
    one.load_head()
    rows = []
    for alpha in plan.alphas:
        edits = factor_edits(pruned, plan.method, alpha, plan.on)
        found = _against(one, first, two, text, edits, tell, f"factor {alpha:g}")
        low, high = interval(found, found.kl)
        rows.append({"alpha": alpha, "kl": found.mean, "low": low, "high": high})
    return rows


def comparison(before: Divergence, after: Divergence, original: Divergence) -> dict[str, Any]:
    """The numbers of the manifest: KL to the unpruned model in nats per token, loss per class."""
    difference = after.kl - before.kl
    low, high = interval(after, difference)
    return {
        "tokens": int(after.tokens.sum()),
        "kl_before": before.mean,
        "kl_before_interval": interval(before, before.kl),
        "kl_after": after.mean,
        "kl_after_interval": interval(after, after.kl),
        "kl_change": after.mean - before.mean,
        "kl_change_interval": [low, high],
        "gain_shown": high < 0,
        "classes": {
            name: {
                "kl_before": before.class_means(before.kl)[name],
                "kl_after": after.class_means(after.kl)[name],
                "loss_unpruned": original.class_means(original.loss)[name],
                "loss_before": before.class_means(before.loss)[name],
                "loss_after": after.class_means(after.loss)[name],
            }
            for name in after.windows.classes
            if name in _present(after)
        },
    }


def _present(divergence: Divergence) -> set[str]:
    """Classes with at least one compared token."""
    return {divergence.windows.classes[w.category] for w in divergence.windows.windows if len(w.tokens) > 1}
