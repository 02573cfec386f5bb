"""The logit comparison with whole models in memory, one after the other: for models that cannot run layer by layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trimoe.certify.certificate import Finding
from trimoe.certify.compared_logits import ComparedLogits
from trimoe.certify.loading import LoadingFailed, first_line, fp32_bytes, loaded
from trimoe.certify.logit_proof import CannotCheck
from trimoe.certify.mask import Routing, loaded_tensor, router_mask
from trimoe.certify.mask_neurons import mask_neurons
from trimoe.choose.dropmap import DropMap
from trimoe.io.progress import Progress
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import TensorInfo


class _RunFailed(Exception):
    """Internal: a model's forward pass raises."""


def compare_whole(
    base: Checkpoint,
    pruned: Path,
    pruned_index: dict[str, TensorInfo],
    drop_map: DropMap,
    ids: list[list[int]],
    compared: ComparedLogits,
    device: str,
    progress: Progress | None,
    on_loaded: Callable[[dict[str, Any], dict[str, Any]], None],
) -> Routing:
    """Fill `compared`. `on_loaded` gets both loading reports before the pruned model runs. Raises `CannotCheck`, or
    `LoadingFailed` for the pruned model."""
    routing, original = _run_original(base, drop_map, ids, compared, device, progress)
    with loaded(pruned, device, fp32_bytes(pruned_index)) as (model, keys):
        on_loaded(original, keys)
        for number, prompt in enumerate(ids):
            try:
                logits = _forward(model, prompt, device)
            except _RunFailed as exc:
                compared.stop(Finding(subject=f"the pruned model cannot be run on prompt {number}", actual=str(exc)))
                break
            compared.compare(number, 0, logits)
            if progress is not None:
                progress(len(ids) + number + 1, 2 * len(ids), "logits of the pruned model")
    return routing


def _run_original(
    base: Checkpoint,
    drop_map: DropMap,
    ids: list[list[int]],
    compared: ComparedLogits,
    device: str,
    progress: Progress | None,
) -> tuple[Routing, dict[str, Any]]:
    """Give `compared` the masked original's logits; returns its loading report too."""
    routing = Routing()
    try:
        with loaded(base.path, device, fp32_bytes(base.index)) as (model, keys):
            mask_neurons(base, drop_map, model, base.moe_layers)
            mask = router_mask(
                base, drop_map, lambda role, layer: loaded_tensor(base, role, layer, model), base.moe_layers, routing
            )
            for number, prompt in enumerate(ids):
                with mask:
                    logits = _forward(model, prompt, device)
                compared.keep(number, 0, logits)
                if progress is not None:
                    progress(number + 1, 2 * len(ids), "logits of the masked original")
    except LoadingFailed as exc:
        raise CannotCheck(f"the original itself does not load: {exc}") from exc
    except _RunFailed as exc:
        raise CannotCheck(f"the original itself does not run: {exc}") from exc
    if unseen := sorted(set(base.moe_layers) - mask.seen):
        raise CannotCheck(f"the router of layer {unseen[0]} was never reached, so it could not be masked")
    return routing, dict(keys)


def _forward(model: Any, ids: list[int], device: str) -> np.ndarray:
    """Logits of one prompt, float32 [tokens, vocabulary]. Raises `_RunFailed`."""
    import torch

    try:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
    except Exception as exc:  # a model's own code raises anything if weights and config do not match
        raise _RunFailed(first_line(exc)) from exc
    result: np.ndarray = logits.float().cpu().numpy()
    return result
