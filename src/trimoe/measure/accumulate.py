"""Per-layer statistics of routed experts, from the values that the forward pass computes anyway.

`LayerRecorder` stands in for the experts of one layer: it computes their output once and, from the same expert outputs,
the sums of protocol section 4 for every window. w_t is the weight that is really applied to the expert's output: with
Gemma 4 that is the renormalised router probability times `per_expert_scale`; where a family scales the expert's input
instead (Llama 4) it is 1.

Invariants: only row norms leave the device, every sum over tokens and windows is taken in float64 in token order, so
the results do not depend on how windows were batched. A document's weight multiplies every sum as if the document had
been seen that often; `cc` counts windows and maxima are maxima, whatever the weight.
Masked and counted: tokens whose layer input or expert input is not finite or exceeds 1e6 in absolute value; expert
outputs whose norm is not finite.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimoe.measure.routing import Router

IMPLEMENTATION = "trimoe_recording"
"""Name under which the recording experts function is registered in transformers."""
MAX_ABS = 1e6
"""Tokens beyond it are numerical accidents (protocol section 4), not evidence."""

SUMS = (
    "tc", "cc", "wnorm", "rnorm", "wnsq", "rnsq", "wsum", "wsum_total", "reap_sum", "reap_l2_sum", "ean_sum",
    "runner_up", "logit_sum", "logit_sqsum", "tokens",
)  # fmt: skip
"""Additive fields [class, shard, expert]. reap_l2_sum: sum of w_t |o_t|^2; runner_up: tokens for which the expert came
next after the chosen ones; logit_sum, logit_sqsum: router logits over all tokens; tokens: their number (the same for
every expert)."""
MAXIMA = ("contrib_max", "out_max")
"""Fields merged by maximum: w_t |o_t| and |o_t|."""
MEAN_VECTOR = "out_mean_norm"
"""Euclidean norm of the mean output vector over a class; it can be neither summed nor split into shards."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of windows of one class and weight, padded on the right to the longest."""

    category: int
    length: int
    windows: tuple[int, ...]
    shards: np.ndarray
    """[window] bootstrap shard."""
    weight: float
    """How often each of the documents counts."""
    counted: np.ndarray
    """[window, length] positions that are measured."""
    real: np.ndarray
    """[window, length] positions that are tokens, not padding."""


class LayerRecorder:
    """Sums of one layer over all batches."""

    def __init__(self, classes: int, shards: int, experts: int, hidden: int) -> None:
        self.experts, self.hidden = experts, hidden
        shape = (classes, shards, experts)
        self.sums = {name: np.zeros(shape) for name in SUMS}
        self.maxima = {name: np.zeros((classes, experts)) for name in MAXIMA}
        self.vectors = np.zeros((classes, experts, hidden))
        self.masked_tokens = np.zeros(classes, np.int64)
        self.masked_outputs = np.zeros(classes, np.int64)
        self._batch: Batch | None = None

    def begin(self, batch: Batch, layer_input: Any) -> None:
        """Announce the next forward: `layer_input` [windows, length, hidden] is checked for accidents."""
        import torch

        self._batch = batch
        device = layer_input.device
        real = torch.from_numpy(np.flatnonzero(batch.real.reshape(-1)))
        self._full = len(real) == batch.real.size
        self._real = real.to(device)
        flat = layer_input.reshape(-1, layer_input.shape[-1])
        self._sane = _sane(flat if self._full else flat[self._real])
        self._logits: Any = None
        self._preference: Any = None

    def result(self) -> dict[str, np.ndarray]:
        """Everything of this layer as arrays: sums [class, shard, expert], maxima [class, expert], masked [class]."""
        count = self.sums["tc"].sum(1)
        length = np.sqrt(np.square(self.vectors).sum(-1))
        mean = np.divide(length, count, out=np.zeros_like(length), where=count > 0)
        masked = {"masked_tokens": self.masked_tokens, "masked_outputs": self.masked_outputs}
        return {**self.sums, **self.maxima, MEAN_VECTOR: mean, **masked}

    def logits(self, logits: Any, preference: Any) -> None:
        """Router logits [tokens, experts] as the router made them (before top-k), padding included, and the values by
        which it prefers one expert to another."""
        self._logits = logits.detach().reshape(-1, self.experts)
        self._preference = preference.detach().reshape(-1, self.experts)

    def forward(self, module: Any, hidden: Any, top_index: Any, top_weight: Any) -> Any:
        """The experts' output for `hidden` [tokens, H]; padding rows give zeros. Statistics are added on the way.

        `hidden` is [tokens, k, H] where each chosen expert has an input of its own.
        """
        import torch

        from trimoe.measure.experts import run_experts

        batch = self._batch
        assert batch is not None
        x, index, weight = hidden, top_index, top_weight
        if not self._full:
            x, index, weight = hidden[self._real], top_index[self._real], top_weight[self._real]
        sane = self._sane & _sane(x)
        counted = batch.counted.reshape(-1)[np.flatnonzero(batch.real.reshape(-1))]
        use = sane & torch.from_numpy(counted).to(sane.device)
        self.masked_tokens[batch.category] += int(counted.sum()) - int(use.sum())
        result = run_experts(module, x, index, weight, use)
        self._add(batch, index, weight, result, use.cpu().numpy())
        if self._full:
            return result.output
        output = result.output.new_zeros((len(hidden), hidden.shape[-1]))
        output[self._real] = result.output
        return output

    def _add(self, batch: Batch, index: Any, weight: Any, result: Any, use: np.ndarray) -> None:
        """Fold one batch into the sums. P = tokens x top-k routed pairs, sorted by expert, then by token."""
        c, top_k = batch.category, index.shape[-1]
        real = np.flatnonzero(batch.real.reshape(-1))
        window = real // batch.length
        expert = result.expert
        norm = result.norm.astype(np.float64)
        pair = result.order
        token = pair // top_k
        w = weight.detach().reshape(-1).float().cpu().numpy().astype(np.float64)[pair]
        finite = np.isfinite(norm) & np.isfinite(w)
        keep = use[token]
        self.masked_outputs[c] += int((keep & ~finite).sum())
        keep &= finite
        if not keep.all():
            expert, norm, w, token = expert[keep], norm[keep], w[keep], token[keep]
        self.vectors[c] += batch.weight * result.vectors
        count = len(batch.windows)
        key = window[token] * self.experts + expert

        def total(values: np.ndarray | None) -> np.ndarray:
            """Sum per (window, expert)."""
            return np.bincount(key, values, count * self.experts).reshape(count, self.experts).astype(np.float64)

        contribution = w * norm
        n, square, weighted = total(None), total(norm * norm), total(contribution * contribution)
        weight_sum = total(w)
        rows = {
            "tc": n, "wnorm": np.sqrt(weighted), "rnorm": np.sqrt(square), "wnsq": weighted, "rnsq": square,
            "wsum": np.divide(weight_sum, n, out=np.zeros_like(n), where=n > 0), "wsum_total": weight_sum,
            "reap_sum": total(contribution), "reap_l2_sum": total(contribution * norm), "ean_sum": total(norm),
        }  # fmt: skip
        np.maximum.at(self.maxima["contrib_max"][c], expert, contribution)
        np.maximum.at(self.maxima["out_max"][c], expert, norm)
        rows |= self._logit_rows(index, use, window, count)
        tokens = np.bincount(window[use], minlength=count)
        rows["tokens"] = np.broadcast_to(tokens[:, None], n.shape)
        for i, shard in enumerate(batch.shards):
            for name, row in rows.items():
                self.sums[name][c, shard] += batch.weight * row[i]
            self.sums["cc"][c, shard] += n[i] > 0

    def _logit_rows(self, index: Any, use: np.ndarray, window: np.ndarray, count: int) -> dict[str, np.ndarray]:
        """Sums of the router logits and counts of the runner-up, [window, expert]; nothing if no router was seen."""
        if self._logits is None:
            return {}
        raw = self._logits if self._full else self._logits[self._real]
        preference = self._preference if self._full else self._preference[self._real]
        chosen = preference.scatter(1, index, float("-inf")).argmax(1).cpu().numpy()
        logits = raw.double().cpu().numpy()
        good = use & np.isfinite(logits).all(1)
        sums, squares = np.zeros((count, self.experts)), np.zeros((count, self.experts))
        runner = np.zeros((count, self.experts))
        for i in range(count):
            rows = good & (window == i)
            sums[i], squares[i] = logits[rows].sum(0), np.square(logits[rows]).sum(0)
            runner[i] = np.bincount(chosen[rows], minlength=self.experts)
        return {"logit_sum": sums, "logit_sqsum": squares, "runner_up": runner}


def _sane(rows: Any) -> Any:
    """Bool [tokens]: every value finite and at most MAX_ABS (a comparison with NaN is false)."""
    return rows.abs().flatten(1).amax(-1) <= MAX_ABS


@contextmanager
def recording(experts: Any, router: Router | None, recorder: LayerRecorder) -> Iterator[None]:
    """While the block runs, the forward passes of this layer's experts and router are recorded.

    In a layer without experts (both None) nothing is, and the sums stay zero.
    """
    if experts is None or router is None:
        yield
        return

    def see(module: Any, args: Any, output: Any) -> None:
        logits = router.logits(output)
        recorder.logits(logits, router.preference(logits))

    hook = router.module.register_forward_hook(see)
    experts.trimoe_recorder = recorder
    try:
        yield
    finally:
        hook.remove()
        del experts.trimoe_recorder
