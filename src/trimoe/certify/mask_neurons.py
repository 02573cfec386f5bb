"""Switches the removed neurons of the original off: their columns of the down projections become 0.

The activation of a neuron reaches the model through its column alone, so a column of zeros is an activation
multiplied by 0, for any activation function and with or without biases of gate and up.
"""

from collections.abc import Iterable
from typing import Any

from trimoe.certify.logit_proof import CannotCheck
from trimoe.choose.dropmap import DropMap
from trimoe.model.checkpoint import Checkpoint


def mask_neurons(base: Checkpoint, drop_map: DropMap, model: Any, layers: Iterable[int]) -> None:
    """Set the columns of the neurons that `drop_map` removes to 0 in these layers, which `model` has loaded. Raises
    `CannotCheck`."""
    narrow = drop_map.narrow
    if narrow is None:
        return
    for layer in layers:
        down, neurons = down_projection(base, layer, model)
        for expert in drop_map.keep(layer, base.num_experts):
            removed = sorted(set(range(narrow.width)) - set(narrow.of(layer, expert)))
            down.data[expert].index_fill_(neurons, _index(removed, down), 0)


def down_projection(base: Checkpoint, layer: int, model: Any) -> tuple[Any, int]:
    """The stacked down projections [E, H, I] or [E, I, H] of a layer, and the axis of an expert's matrix over neurons.

    Raises `CannotCheck` if the model has no such parameter or more than one.
    """
    width = base.setting(base.hf.config.expert_width)
    place = f".layers.{layer}."
    found = [
        module
        for name, module in model.named_modules()
        if place in f".{name}."
        and getattr(getattr(module, "down_proj", None), "ndim", 0) == 3
        and module.down_proj.shape[0] == base.num_experts
    ]
    if len(found) != 1:
        raise CannotCheck(f"the experts of layer {layer} were not found in the loaded model ({len(found)} candidates)")
    module = found[0]
    transposed = bool(getattr(module, "is_transposed", module.down_proj.shape[2] != width))
    if module.down_proj.shape[1 if transposed else 2] != width:
        raise CannotCheck(f"the experts of layer {layer} are not {width} wide in the loaded model")
    return module.down_proj, 0 if transposed else 1


def _index(values: list[int], like: Any) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.long, device=like.device)
