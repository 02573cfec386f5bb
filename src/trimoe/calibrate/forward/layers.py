"""The decoder layers of a checkpoint, run one at a time by the model's own code.

The model's own text forward runs as it is, with every decoder layer but the active one passing its input through. So
masks, rotary embeddings and per-layer attention types are the model's own, for any family. One layer (and the next,
being read) has weights at a time, see `shell`.

Invariant: windows are padded on the right and attention is causal, so padding never reaches a token and no mask is
needed. Not supported: families that pass state other than the hidden state from layer to layer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trimoe.calibrate.forward.experts import adapt
from trimoe.calibrate.forward.shell import ModelShell
from trimoe.errors import CheckpointError
from trimoe.model.checkpoint import Checkpoint


class LayerModel(ModelShell):
    """The text model of a checkpoint with weights loaded layer by layer onto `device` in `dtype`."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        super().__init__(checkpoint, device, dtype)
        self.active, self.returns_tuple = -1, False
        self._passed: Any = None
        self._changed_before: str | None = None
        self._input: Any = None
        self._output: Any = None
        self._patch()
        self._adapt_experts()

    def _patch(self) -> None:
        for number, layer in enumerate(self.layers):
            layer.forward = self._hop(number, layer.forward)
        self._norm = self.final_norm.forward
        self.final_norm.forward = self._skip_norm

    def _skip_norm(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        self._follow(hidden, "the final norm")
        return hidden

    def _follow(self, hidden: Any, where: str) -> None:
        """Note where hidden states are not those that the layer before returned, which `run` refuses."""
        if self._passed is not None and hidden is not self._passed and self._changed_before is None:
            self._changed_before = where

    def _adapt_experts(self) -> None:
        """Adapt experts outside transformers' experts interface to it."""
        hf = self.checkpoint.hf
        for layer in self.checkpoint.moe_layers:
            experts, router = self.experts(layer), self.router(layer)
            if not hasattr(experts, "has_gate"):
                if hf.routing.weight_on != "input":
                    raise CheckpointError(
                        f"{type(experts).__name__} is outside transformers' experts interface",
                        expected=f"an interface that family {self.checkpoint.family.name} shares with the others",
                        remedy="this version of transformers cannot be used to calibrate it",
                    )
                adapt(experts, router.module, hf.roles["down"].shape == ("E", "I", "H"))

    def _hop(self, number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            self._follow(hidden_states, f"layer {number}")
            if number != self.active:
                self._passed = hidden_states
                return (hidden_states,) if self.returns_tuple else hidden_states
            result = original(hidden_states if self._input is None else self._input, *args, **kwargs)
            self.returns_tuple = isinstance(result, tuple)
            self._output = self._passed = result[0] if self.returns_tuple else result
            return result

        return forward

    def logits(self, hidden: Any) -> Any:
        """Logits [windows, length, vocabulary] for the output of the last layer, through the model's own head."""
        self.active, self._input = -1, None
        # The norm gets the hidden states themselves: some families scale embeddings before the first layer.
        self.final_norm.forward = lambda _: self._norm(hidden)
        try:
            return self.model(inputs_embeds=_like(hidden), use_cache=False).logits
        finally:
            self.final_norm.forward = self._skip_norm

    def embed(self, tokens: np.ndarray) -> Any:
        """Hidden states [windows, length, H] that enter layer 0 for ids [windows, length] of the loaded rows."""
        import torch

        self.active, self._input = -1, None
        found: list[Any] = []
        hook = self.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        try:
            ids = torch.from_numpy(np.searchsorted(self._vocabulary, tokens)).to(self.device)
            self.text(input_ids=ids, use_cache=False)
        except ValueError as exc:  # the model unpacks what a layer returns
            raise CheckpointError(
                f"the layers of {type(self.text).__name__} cannot be run one by one",
                expected="layers that hand on hidden states alone",
                actual=str(exc)[:100],
                remedy="this model type cannot be calibrated; maps from imported statistics can still be cut",
            ) from exc
        finally:
            hook.remove()
            self._passed = None
        return found[0]

    def run(self, layer: int, hidden: Any) -> Any:
        """Output of a loaded layer for `hidden` [windows, length, H].

        Raises `CheckpointError` if the model changes hidden states between layers, because that would be lost.
        """
        self.active, self._input, self._output = layer, hidden, None
        self._passed = self._changed_before = None
        try:
            self.text(inputs_embeds=_like(hidden), use_cache=False)
            if self._changed_before is not None:
                raise CheckpointError(
                    f"{type(self.text).__name__} changes hidden states before {self._changed_before}",
                    expected="layers that pass nothing but the hidden states of the layer before",
                    remedy="this model cannot be run layer by layer",
                )
            return self._output
        finally:
            self.active, self._input, self._output, self._passed = -1, None, None, None


def _like(hidden: Any) -> Any:
    """Embeddings of zeros: the text model derives masks and positions from their shape; their values are not used."""
    import torch

    return torch.zeros(1, 1, 1, dtype=hidden.dtype, device=hidden.device).expand(hidden.shape)
