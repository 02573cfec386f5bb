"""Masks the dropped experts of the original while it runs: -inf on their router logits in every layer.

The router of a layer is the parameter loaded from the family's `router` tensor, and the mask applies to every linear
map that uses it. This covers a `Linear` module as well as a router with its own parameter, without knowing class names.
Terms that are added to the scores before selection (roles with `selects`) get -inf at the same places, because a score
of 0 plus a positive term could still be among the largest.
Not guaranteed: exclusion where selection is not monotone in the scores (none of the shipped families).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimoe.certify.logit_proof import CannotCheck
from trimoe.choose.dropmap import DropMap
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.safetensors import read_array


@dataclass
class Routing:
    """How much the prompts exercised the mask."""

    selections: int = 0
    selections_dropped: int = 0
    routed: set[tuple[int, int]] = field(default_factory=set)

    def numbers(self, base: Checkpoint, drop_map: DropMap) -> dict[str, int | float]:
        """`masked_share`: share of the unmasked selections that would have gone to a dropped expert (0: the mask was
        never needed). `kept_routed`: kept (layer, expert) pairs that any token was routed to, out of `kept_total`."""
        kept = sum(len(drop_map.keep(layer, base.num_experts)) for layer in base.moe_layers)
        share = self.selections_dropped / self.selections if self.selections else 0.0
        return {"masked_share": round(share, 6), "kept_routed": len(self.routed), "kept_total": kept}


@dataclass(frozen=True)
class _Router:
    """The router of one layer in the loaded model, and the experts it must not select."""

    layer: int
    score: str
    dropped: Any
    """bool [E]"""
    terms: list[Any]
    """The model's own tensors of E values that are added to the scores."""
    loaded: list[Any]
    """Their values as loaded."""

    def close(self) -> None:
        """Set every term of the dropped experts to -inf."""
        for term in self.terms:
            term.view(-1).masked_fill_(self.dropped, float("-inf"))

    def open(self) -> None:
        """Restore the terms as loaded."""
        for term, values in zip(self.terms, self.loaded, strict=True):
            term.copy_(values)

    def choice(self, logits: Any, top_k: int) -> Any:
        """Ids [tokens, top_k] of the experts that these logits select; -inf is never selected."""
        scores = logits.float().sigmoid() if self.score == "sigmoid" else logits.float().softmax(-1)
        for values in self.loaded:
            scores = scores + values.reshape(-1)
        return scores.masked_fill(logits.isneginf(), float("-inf")).topk(top_k, dim=-1).indices


def router_mask(
    base: Checkpoint, drop_map: DropMap, tensor: Callable[[str, int], Any], layers: Iterable[int], routing: Routing
) -> Any:
    """A context manager in which no router of `layers` can select its layer's dropped experts.

    `tensor` returns the loaded parameter or buffer of a role in a layer. `routing` counts what the routers did.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    routers: dict[int, _Router] = {}
    for layer in layers:
        weight = tensor("router", layer)
        dropped = torch.zeros(base.num_experts, dtype=torch.bool)
        dropped[list(drop_map.drop[layer])] = True
        selecting = [name for name, role in base.hf.roles.items() if role.selects]
        present = [name for name in selecting if base.role_name(name, layer) in base.index]
        terms = [tensor(name, layer).detach() for name in present]
        routers[weight.data_ptr()] = _Router(
            layer, base.hf.routing.score, dropped.to(weight.device), terms, [term.clone() for term in terms]
        )

    class RouterMask(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[int] = set()
            self.routing = routing

        def __enter__(self) -> Any:
            for router in routers.values():
                router.close()
            return super().__enter__()

        def __exit__(self, *exc: Any) -> None:
            super().__exit__(*exc)
            for router in routers.values():
                router.open()

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            if func is not torch.nn.functional.linear:
                return out
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            router = routers.get(weight.data_ptr())
            if router is None:
                return out
            self.seen.add(router.layer)
            masked = out.masked_fill(router.dropped, float("-inf"))
            chosen = router.choice(out, base.top_k)
            self.routing.selections += chosen.numel()
            self.routing.selections_dropped += int(router.dropped[chosen].sum())
            self.routing.routed.update((router.layer, int(e)) for e in router.choice(masked, base.top_k).unique())
            return masked

    return RouterMask()


def loaded_tensor(base: Checkpoint, role: str, layer: int, model: Any) -> Any:
    """The model's parameter or buffer that was loaded from a layer's tensor: by name, else by its values, because some
    families are renamed on loading. Raises `CannotCheck`."""
    import torch

    name = base.role_name(role, layer)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    suffix = "." + name[name.index("layers.") :] if "layers." in name else name
    found = [name] if name in tensors else [n for n in tensors if n.endswith(suffix)]
    if len(found) != 1:
        want = torch.from_numpy(np.array(read_array(base.index[name]), dtype=np.float32))
        found = [n for n, p in tensors.items() if p.shape == want.shape and torch.equal(p.detach().cpu().float(), want)]
    if len(found) > 1:  # equal values in several layers, such as an untrained correction
        found = [n for n in found if f".layers.{layer}." in n]
    if len(found) != 1:
        raise CannotCheck(f"the parameter of {name} was not found in the loaded model ({len(found)} candidates)")
    return tensors[found[0]]
