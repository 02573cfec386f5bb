"""The original with its dropped experts out of reach: -inf on their router logits, in every layer, while it runs.

The router of a layer is the parameter loaded from the family's `router` tensor, and the mask is put on every linear map
that uses it: this covers a `Linear` module and a router with its own parameter alike, without knowing class names.
Not guaranteed: exclusion where selection is not monotone in these logits (none of the shipped families).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimoe.choose.dropmap import DropMap
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import read_array


class CannotCheck(Exception):
    """Internal: why the logit check has no result. Becomes a check that was not run, never a pass."""


@dataclass
class Routing:
    """How far the prompts exercised the mask."""

    selections: int = 0
    selections_dropped: int = 0
    routed: set[tuple[int, int]] = field(default_factory=set)

    def numbers(self, base: Checkpoint, drop_map: DropMap) -> dict[str, int | float]:
        """`masked_share`: part of the unmasked selections that would have gone to a dropped expert (0: the mask was
        never needed). `kept_routed`: kept (layer, expert) pairs that some token was routed to, of `kept_total`."""
        kept = sum(len(drop_map.keep(layer, base.num_experts)) for layer in base.moe_layers)
        share = self.selections_dropped / self.selections if self.selections else 0.0
        return {"masked_share": round(share, 6), "kept_routed": len(self.routed), "kept_total": kept}


def router_mask(base: Checkpoint, drop_map: DropMap, model: Any) -> Any:
    """A context manager under which every router's output has -inf at the layer's dropped experts."""
    import torch
    from torch.overrides import TorchFunctionMode

    layers: dict[int, int] = {}
    masks: dict[int, torch.Tensor] = {}
    for layer in base.moe_layers:
        weight = _router_weight(base, layer, model)
        layers[weight.data_ptr()] = layer
        mask = torch.zeros(base.num_experts, dtype=torch.bool)
        mask[list(drop_map.drop[layer])] = True
        masks[layer] = mask.to(weight.device)

    class RouterMask(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[int] = set()
            self.routing = Routing()

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            if func is not torch.nn.functional.linear:
                return out
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            layer = layers.get(weight.data_ptr())
            if layer is None:
                return out
            self.seen.add(layer)
            masked = out.masked_fill(masks[layer], float("-inf"))
            chosen = out.topk(base.top_k, dim=-1).indices
            self.routing.selections += chosen.numel()
            self.routing.selections_dropped += int(masks[layer][chosen].sum())
            self.routing.routed.update((layer, int(e)) for e in masked.topk(base.top_k, dim=-1).indices.unique())
            return masked

    return RouterMask()


def _router_weight(base: Checkpoint, layer: int, model: Any) -> Any:
    """The model's parameter that was loaded from the layer's router tensor: by name, else by its values, because
    some families are renamed while they are loaded."""
    import torch

    name = base.role_name("router", layer)
    parameters = dict(model.named_parameters())
    suffix = "." + name[name.index("layers.") :] if "layers." in name else name
    found = [name] if name in parameters else [n for n in parameters if n.endswith(suffix)]
    if len(found) != 1:
        want = torch.from_numpy(np.array(read_array(base.index[name]), dtype=np.float32))
        found = [
            n for n, p in parameters.items() if p.shape == want.shape and torch.equal(p.detach().cpu().float(), want)
        ]
    if len(found) != 1:
        raise CannotCheck(f"the parameter of {name} was not found in the loaded model ({len(found)} candidates)")
    return parameters[found[0]]
