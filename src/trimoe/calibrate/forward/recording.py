"""Hooks that feed a layer's experts and router to a recorder while the model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trimoe.calibrate.forward.routing import Router
from trimoe.calibrate.stats.accumulate import LayerRecorder


@contextmanager
def recording(experts: Any, router: Router, recorder: LayerRecorder) -> Iterator[None]:
    """While the block runs, record the forward passes of this layer's experts and router.

    The logits are the output of the linear map inside the router; what the router module returns differs by family.
    """
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    class SeeLinear(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is linear and result.shape[-1] == recorder.shape.experts:
                recorder.logits(result, router.preference)
            return result

    modes: list[Any] = []

    def enter(module: Any, args: Any) -> None:
        modes.append(SeeLinear())
        modes[-1].__enter__()

    def leave(module: Any, args: Any, output: Any) -> None:
        modes.pop().__exit__(None, None, None)

    module = router.module
    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    experts.trimoe_recorder = recorder
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del experts.trimoe_recorder
