"""Router recalibration: a few optimizer steps per layer that bring a pruned layer's output closer to the original's.

Works layer by layer from the first. The unpruned layer runs on the unpruned model's hidden states; the pruned layer
runs on those of the pruned model with all earlier routers already healed, so that errors of earlier layers are
compensated too. Only the router's rows move (Adam on the squared difference of the layer's outputs). Selection stays a
hard top-k; the gradient flows through the weights of the selected experts.
Invariants: one layer of each model is in memory; the rows are rounded to their stored type before the next layer sees
them; the best rows of all steps are kept, including the original ones, so the fit is never worse on its own text.
Not guaranteed: anything about other text, which the held-out measurement judges.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trimoe.calibrate.divergence import Text
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.errors import CheckpointError
from trimoe.heal.edit import Edit, decode, encode, replacing
from trimoe.io.progress import Progress
from trimoe.model.safetensors import read_bytes


@dataclass(frozen=True)
class Steps:
    """Optimizer settings. `rate` is Adam's learning rate in units of the root mean square of the layer's router."""

    passes: int = 12
    rate: float = 0.01
    decay: float = 1e-3
    """Weight of the penalty on the squared change, in units of the router's size."""


@dataclass(frozen=True)
class Fit:
    """Result in one layer, on the calibration text: the squared error of the output before and after, relative to the
    squared change that the unpruned layer makes to its input; and the change relative to the router's size."""

    edit: Edit
    before: float
    after: float
    change: float


def recalibrate(
    base: LayerModel, cut: LayerModel, text: Text, steps: Steps, progress: Progress | None = None
) -> list[Fit]:
    """Fit every router of `cut` on `text`. Leaves the edits in `cut.edits`. Raises `CheckpointError` for a router that
    is not stored as floats."""
    want, have = text.enter(base), text.enter(cut)
    fits, layers = [], cut.checkpoint.num_layers
    for layer in range(layers):
        base.load(layer)
        targets, moved = _outputs(base, layer, want), 0.0
        for one, two, batch in zip(targets, want, text.batches, strict=True):
            moved += float((one - two)[_real(batch, one)].double().square().sum())
        base.free(layer)
        want = targets
        cut.load(layer)
        if layer in cut.checkpoint.moe_layers:
            fit = _fit(cut, layer, text, have, want, steps, moved)
            fits.append(fit)
            cut.edits[fit.edit.info.name] = fit.edit.whole
            cut.free(layer)
            cut.load(layer)
        have = _outputs(cut, layer, have)
        cut.free(layer)
        if progress is not None:
            progress(layer + 1, layers, "routers")
    return fits


def _fit(cut: LayerModel, layer: int, text: Text, have: list[Any], want: list[Any], steps: Steps, moved: float) -> Fit:
    import torch

    info = cut.checkpoint.index[cut.checkpoint.role_name("router", layer)]
    if info.dtype not in ("BF16", "F16", "F32"):
        raise CheckpointError(
            f"the router {info.name} is stored as {info.dtype}",
            expected="BF16, F16 or F32",
            remedy="recalibrate the unquantized checkpoint",
        )
    stored = read_bytes(info)
    module, attribute = cut._owner(info.name)
    start = torch.from_numpy(decode(stored, info.dtype).astype(np.float32).reshape(info.shape)).to(cut.device)
    rows = torch.nn.Parameter(start.clone().to(getattr(module, attribute).dtype))
    module._parameters[attribute] = rows
    size = float(start.square().mean().sqrt()) or 1.0
    optimiser = torch.optim.Adam([rows], lr=steps.rate * size)
    best, best_rows, first = float("inf"), start.clone(), 0.0
    for number in range(steps.passes + 1):
        total = 0.0
        optimiser.zero_grad()
        for batch, entering, target in zip(text.batches, have, want, strict=True):
            leaving = cut.run(layer, entering)
            loss = (leaving - target)[_real(batch, target)].float().square().sum() / moved
            loss.backward()
            total += float(loss.detach())
        first = total if number == 0 else first
        if total < best:
            best, best_rows = total, rows.detach().float().clone()
        if number == steps.passes:
            break
        penalty = steps.decay * (rows.float() - start).square().mean() / size**2
        penalty.backward()
        optimiser.step()
    values = best_rows.double().cpu().numpy().reshape(-1)
    unchanged = bool((best_rows == start).all())
    content = stored if unchanged else encode(values, info.dtype)
    change = float(np.sqrt(((values - decode(stored, info.dtype)) ** 2).mean())) / size
    edit = replacing(info, layer, content, f"rows moved by {change:.4g} of the router's root mean square")
    return Fit(edit, first, best, change)


def _outputs(model: LayerModel, layer: int, hidden: list[Any]) -> list[Any]:
    import torch

    with torch.no_grad():
        return [model.run(layer, one) for one in hidden]


def _real(batch: Any, like: Any) -> Any:
    import torch

    return torch.from_numpy(batch.real).to(like.device)
