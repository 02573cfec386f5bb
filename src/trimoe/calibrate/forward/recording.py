"""Hooks on a layer's experts and router while the model runs: feeding a recorder, and masking experts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trimoe.calibrate.forward.routing import Router
from trimoe.calibrate.stats.accumulate import LayerRecorder


@contextmanager
def recording(experts: Any, router: Router, recorder: LayerRecorder) -> Iterator[None]:
    """While the block runs, record the forward passes of this layer's experts and router.

    The logits are the output of the linear map inside the router; what the router module returns differs by family.
    """

    def see(logits: Any) -> Any:
        recorder.logits(logits, router.preference)
        return logits

    experts.trimoe_recorder = recorder
    try:
        with _logits_through(see, router, recorder.shape.experts):
            yield
    finally:
        del experts.trimoe_recorder


@contextmanager
def masking(router: Router, dropped: list[int], experts: int) -> Iterator[None]:
    """While the block runs, this layer's router cannot choose the experts of `dropped`.

    Terms that are added to the scores get -inf too: a score of 0 plus a positive term could be among the largest.
    """
    terms = [getattr(module, attribute).view(-1) for module, attribute in router.terms]
    loaded = [term.detach().clone() for term in terms]
    for term in terms:
        term[dropped] = float("-inf")

    def mask(logits: Any) -> Any:
        masked = logits.clone()
        masked[..., dropped] = float("-inf")
        return masked

    try:
        with _logits_through(mask, router, experts):
            yield
    finally:
        for term, values in zip(terms, loaded, strict=True):
            term.copy_(values)


@contextmanager
def _logits_through(change: Callable[[Any], Any], router: Router, experts: int) -> Iterator[None]:
    """While the block runs, the router's logits [..., experts] are what `change` returns for them."""
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    class AtLinear(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            return change(result) if func is linear and result.shape[-1] == experts else result

    modes: list[Any] = []

    def enter(module: Any, args: Any) -> None:
        modes.append(AtLinear())
        modes[-1].__enter__()

    def leave(module: Any, args: Any, output: Any) -> None:
        modes.pop().__exit__(None, None, None)

    module = router.module
    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
