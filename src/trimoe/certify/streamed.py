"""The logit comparison layer by layer: one layer of one model is in memory, whatever the depth.

Each layer of the original is loaded, its dropped experts are masked, and the masked hidden states run through it; then
the same layer of the pruned model runs its own hidden states. Both use transformers' own code with eager attention and
experts, in fp32, one prompt at a time without padding. Norm and head follow in parts of a prompt.
Invariants: the pruned model never sees a value of the original's pass. A model that the engine cannot drive is
`CannotStream`, before any verdict.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.forward.weights import StoredTensor
from trimoe.certify.certificate import Finding
from trimoe.certify.compared_logits import ComparedLogits
from trimoe.certify.loading import CannotStream, LoadingFailed, first_line, require_memory
from trimoe.certify.loading_report import LoadingReport
from trimoe.certify.logit_proof import CannotCheck
from trimoe.certify.mask import Routing, router_mask
from trimoe.certify.mask_neurons import mask_neurons
from trimoe.choose.dropmap import DropMap
from trimoe.errors import CheckpointError
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint

NOTICEABLE = 1e-5
"""Relative difference of hidden states from which a layer is compared alone as well."""
_POSITIONS = 64
"""Positions whose logits are in memory at once."""


class ReferenceModel(LayerModel):
    """The model with transformers' own eager functions. What does not load is noted in `report` instead of raised."""

    implementation = "eager"
    attention: Mapping[str, str] = MappingProxyType({"attn_implementation": "eager"})

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.report = LoadingReport()
        super().__init__(checkpoint, device, "float32")
        self.report.read_headers(self.tensors, self._targets, self._converted, self.model)

    def _adapt_experts(self) -> None:
        """Experts run as transformers runs them."""

    def _report_unknown(self, names: list[str]) -> None:
        """Noted by `read_headers`."""

    def _tensor(self, name: str) -> Any:
        return StoredTensor(self.tensors[name])

    def _report_loading(self, info: Any, wanted: set[str]) -> None:
        self.report.add(info)

    def names_of(self, layer: int) -> list[str]:
        """Tensors of a layer that the model has a place for."""
        return [name for name in super().names_of(layer) if self._targets[name] in self._meta_state]

    def role_tensor(self, role: str, layer: int) -> Any:
        """The loaded parameter or buffer of a role."""
        module, attribute = self._owner(self.checkpoint.role_name(role, layer))
        return getattr(module, attribute)

    @property
    def needed(self) -> int:
        """Peak bytes of weights: the largest layer while it is loaded, or the head."""
        layers = [self.nbytes_of(i) + self.loading_bytes(i) for i in range(self.checkpoint.num_layers)]
        return max(*layers, self.head_bytes)

    @property
    def head_bytes(self) -> int:
        """Bytes of the output matrix in fp32, with those of its stored values."""
        weight = self.model.get_output_embeddings().weight
        return int(weight.numel()) * 6


class _PrunedFails(Exception):
    """Internal: the pruned model's own code raises; carries the finding."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(finding.subject)


@dataclass
class Streamed:
    """What the comparison found besides logits."""

    original: LoadingReport
    pruned: LoadingReport
    routing: Routing = field(default_factory=Routing)
    hidden: list[float] = field(default_factory=list)
    """Per layer: largest difference of a hidden state, relative to the largest hidden state of the original."""
    alone: list[float] = field(default_factory=list)
    """The same of each layer alone, both models given the original's hidden states. It tells a layer that differs from
    rounding that grows from layer to layer."""


def compare_layers(
    base: Checkpoint,
    pruned: Checkpoint,
    drop_map: DropMap,
    ids: list[list[int]],
    compared: ComparedLogits,
    device: str,
    progress: Progress | None,
) -> Streamed:
    """Fill `compared` layer by layer. Raises `CannotStream`, `CannotCheck`, or `LoadingFailed` for the pruned model."""
    import torch

    try:
        one = ReferenceModel(base, device)
        vocabulary = np.unique(np.concatenate([np.asarray(prompt) for prompt in ids]))
        with torch.no_grad():
            first = _embedded(one, ids, vocabulary)
    except Exception as exc:  # transformers raises anything for a model that cannot be taken apart
        raise CannotStream(first_line(exc)) from exc
    require_memory(one.needed, device)
    try:
        two = ReferenceModel(pruned, device)
        with torch.no_grad():
            second: list[Any] | None = _embedded(two, ids, vocabulary)
    except Exception as exc:
        raise LoadingFailed(
            [Finding(subject="the pruned model does not load like the original", actual=first_line(exc))]
        ) from exc
    found = Streamed(one.report, two.report)
    steps = base.num_layers + 1
    with torch.no_grad():
        for layer in range(base.num_layers):
            entering, first = first, _through_original(one, drop_map, layer, first, found.routing)
            try:
                second = None if second is None else _through_pruned(two, layer, second, (entering, first), found)
            except _PrunedFails as exc:
                compared.stop(exc.finding)
                second = None
            if progress is not None:
                progress(layer + 1, steps, f"layer {layer + 1} of {base.num_layers}, original and pruned")
        try:
            _heads(one, first, two, second, compared)
        except _PrunedFails as exc:
            compared.stop(exc.finding)
    if progress is not None:
        progress(steps, steps, "logits")
    return found


def _embedded(model: ReferenceModel, ids: list[list[int]], vocabulary: np.ndarray) -> list[Any]:
    model.load_embedding(vocabulary)
    try:
        return [model.embed(np.asarray([prompt])) for prompt in ids]
    finally:
        model.free_embedding()


def _through_original(
    model: ReferenceModel, drop_map: DropMap, layer: int, hidden: list[Any], routing: Routing
) -> list[Any]:
    base, mask = model.checkpoint, None
    try:
        model.load(layer)
        if layer in base.moe_layers:
            mask_neurons(base, drop_map, model.model, [layer])
            mask = router_mask(base, drop_map, model.role_tensor, [layer], routing)
        with mask or nullcontext():
            hidden = [model.run(layer, one) for one in hidden]
    except CannotCheck:
        raise
    except Exception as exc:  # the model's own code, driven in a way that may not fit it
        raise CannotStream(first_line(exc)) from exc
    finally:
        model.free(layer)
    if mask is not None and layer not in mask.seen:
        raise CannotCheck(f"the router of layer {layer} was never reached, so it could not be masked")
    return hidden


def _through_pruned(
    model: ReferenceModel, layer: int, hidden: list[Any], original: tuple[list[Any], list[Any]], found: Streamed
) -> list[Any]:
    """The layer's outputs; also compares them with the original's (inputs, outputs). Raises `_PrunedFails`."""
    entering, leaving = original
    try:
        model.load(layer)
        hidden = [model.run(layer, one) for one in hidden]
        found.hidden.append(_difference(leaving, hidden))
        alone = found.hidden[-1]
        if alone > NOTICEABLE:  # otherwise the inputs were as good as equal
            alone = _difference(leaving, [model.run(layer, one) for one in entering])
        found.alone.append(alone)
        return hidden
    except Exception as exc:  # weights that do not fit its config raise anything
        subject = f"layer {layer} of the pruned model cannot be run"
        raise _PrunedFails(Finding(subject=subject, actual=first_line(exc), layer=layer)) from exc
    finally:
        model.free(layer)


def _difference(first: list[Any], second: list[Any]) -> float:
    scale = max(float(one.abs().max()) for one in first)
    largest = max(float((one - two).abs().max()) for one, two in zip(first, second, strict=True))
    return largest / scale if scale else largest


def _heads(
    one: ReferenceModel, first: list[Any], two: ReferenceModel, second: list[Any] | None, compared: ComparedLogits
) -> None:
    """Norm and head of the original over all prompts, then those of the pruned model."""
    try:
        _all_logits(one, first, compared.keep)
    except CheckpointError as exc:
        raise CannotCheck(f"the original itself does not load: {first_line(exc)}") from exc
    if second is None:
        return
    try:
        _all_logits(two, second, compared.compare)
    except Exception as exc:
        subject = "the head of the pruned model cannot be run"
        raise _PrunedFails(Finding(subject=subject, actual=first_line(exc))) from exc


def _all_logits(model: ReferenceModel, hidden: list[Any], take: Callable[[int, int, np.ndarray], None]) -> None:
    """`take` gets the logits of each prompt in parts."""
    try:
        model.load_head()
        for number, states in enumerate(hidden):
            for start in range(0, states.shape[1], _POSITIONS):
                take(number, start, model.logits(states[:, start : start + _POSITIONS])[0].float().cpu().numpy())
    finally:
        model.free_head()
