"""Sums of one layer's routed experts, taken from the values that the forward pass computes anyway.

`LayerRecorder` replaces the experts' forward of one layer: each output is computed once, and the sums of section 4 of
the protocol are taken from it for every window. w_t is the weight by which the expert's output is multiplied: with
Gemma 4 the renormalised router probability times `per_expert_scale`; where a family scales the expert's input instead
(Llama 4), 1.

Invariants: row norms are fp32; every sum over tokens and windows is float64 in token order, so results do not depend on
batching. A document's weight multiplies every sum as if the document occurred that many times; `cc` and `routed` count
it once, and maxima ignore it.
Masked and counted: tokens whose layer input or expert input is not finite or exceeds 1e6 in absolute value, and expert
outputs whose norm is not finite.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trimoe.calibrate.forward.batching import Batch
from trimoe.calibrate.forward.experts import Seen, route, run_experts
from trimoe.calibrate.recon.layer import Reconstruction
from trimoe.calibrate.stats.fields import (
    BY_KIND,
    COACTIVATION,
    COUNT,
    MAXIMA,
    MEAN_VECTOR,
    NEURON_CONTRIBUTION,
    NEURONS,
    Shape,
    kind_field,
)
from trimoe.calibrate.text.windows import POSITIONS, PROMPT

MAX_ABS = 1e6
"""Larger values are numerical accidents (section 4 of the protocol); their tokens are left out."""


class LayerRecorder:
    """Sums of one layer over all batches."""

    def __init__(self, shape: Shape, device: Any = "cpu", reconstruction: Reconstruction | None = None) -> None:
        import torch

        self.shape, self.reconstruction = shape, reconstruction
        classes, experts = shape.classes, shape.experts
        self.sums = {name: np.zeros((classes, shape.shards, experts)) for name in shape.sums}
        self.maxima = {name: np.zeros((classes, experts)) for name in MAXIMA}
        self.routed = np.zeros((classes, experts))
        self.masked_tokens = np.zeros(classes, np.int64)
        self.masked_outputs = np.zeros(classes, np.int64)
        self.coactivation = np.zeros((classes, experts, experts)) if shape.coactivation else None
        self._vectors = torch.zeros(classes, experts, shape.hidden, dtype=torch.float64, device=device)
        neurons = (classes, experts, shape.inner)
        self._neurons = torch.zeros(neurons, dtype=torch.float64, device=device) if shape.neurons else None
        self._weighted = torch.zeros_like(self._neurons) if self._neurons is not None else None
        self._columns: Any = None
        self._batch: Batch | None = None
        self._logits: Any = None
        self._preference: Callable[[Any], Any] = lambda logits: logits

    def begin(self, batch: Batch, layer_input: Any) -> None:
        """Announce the next forward; `layer_input` [windows, length, hidden] is checked for values out of range."""
        import torch

        self._batch, self._logits = batch, None
        self._places = None if batch.full else torch.from_numpy(batch.places).to(layer_input.device)
        self._sane = _sane(self._tokens(layer_input.reshape(-1, layer_input.shape[-1])))

    def result(self) -> dict[str, np.ndarray]:
        """The layer's arrays: sums [class, shard, expert], all others [class, expert, ...]."""
        count = self.sums["tc"].sum(1)
        length = np.sqrt(np.square(self._vectors.cpu().numpy()).sum(-1))
        mean = np.divide(length, count, out=np.zeros_like(length), where=count > 0)
        result = {
            **self.sums,
            **self.maxima,
            COUNT: self.routed,
            MEAN_VECTOR: mean,
            "masked_tokens": self.masked_tokens,
            "masked_outputs": self.masked_outputs,
        }
        if self.coactivation is not None:
            result[COACTIVATION] = self.coactivation
        if self._neurons is not None:
            result[NEURONS] = self._neurons.cpu().numpy()
        if self._weighted is not None:
            columns = 0 if self._columns is None else self._columns
            result[NEURON_CONTRIBUTION] = (self._weighted * columns).cpu().numpy()
        return result

    def logits(self, logits: Any, preference: Callable[[Any], Any]) -> None:
        """Router logits [tokens, experts] as the router made them (before top-k), padding included; `preference` turns
        them into the values by which it prefers one expert to another."""
        self._logits, self._preference = logits.detach().reshape(-1, self.shape.experts), preference

    def forward(self, module: Any, hidden: Any, top_index: Any, top_weight: Any) -> Any:
        """The experts' output for `hidden` [tokens, H], with zeros for padding; updates the sums.

        `hidden` is [tokens, k, H] where each chosen expert has an input of its own.
        """
        import torch

        batch = self._batch
        assert batch is not None
        x, index, weight = self._tokens(hidden), self._tokens(top_index), self._tokens(top_weight)
        counted = batch.counted.reshape(-1)[batch.places]
        use = self._sane & _sane(x) & torch.from_numpy(counted).to(x.device)
        routing = route(index, self.shape.experts)
        measured = _Measured(self, batch, routing, use, weight)
        if self._weighted is not None and self._columns is None:
            self._columns = column_squares(module)
        output = run_experts(module, x, weight, routing, measured.see)
        self._add(batch, index, weight, routing, measured, use.cpu().numpy(), counted)
        if self.reconstruction is not None and self._logits is not None:
            self.reconstruction.see(batch, x, self._tokens(self._logits), index, weight, use.cpu().numpy())
        if self._places is None:
            return output
        padded = output.new_zeros((len(hidden), output.shape[-1]))
        padded[self._places] = output
        return padded

    def _tokens(self, rows: Any) -> Any:
        return rows if self._places is None else rows[self._places]

    def _add(
        self,
        batch: Batch,
        index: Any,
        weight: Any,
        routing: Any,
        measured: "_Measured",
        use: np.ndarray,
        counted: np.ndarray,
    ) -> None:
        """Add one batch to the sums. Its P = tokens x top-k routed pairs are sorted by expert, then by token."""
        category = batch.category[batch.window]
        np.add.at(self.masked_tokens, category, counted & ~use)
        expert, norm = routing.expert.cpu().numpy(), measured.norm.cpu().numpy().astype(np.float64)
        order = routing.order.cpu().numpy()
        token = order // index.shape[-1]
        w = weight.detach().reshape(-1).float().cpu().numpy().astype(np.float64)[order]
        finite = np.isfinite(norm) & np.isfinite(w)
        keep = use[token]
        np.add.at(self.masked_outputs, category[token], keep & ~finite)
        keep &= finite
        if not keep.all():
            expert, norm, w, token = expert[keep], norm[keep], w[keep], token[keep]
        contribution = w * norm
        rows = self._rows(batch, expert, norm, w, token, use)
        n = rows["tc"]
        rows |= self._logit_rows(batch, index, use)
        self._add_rows(batch, rows, "{}")
        np.add.at(self.routed, batch.category, n)
        np.maximum.at(self.maxima["contrib_max"], (category[token], expert), contribution)
        np.maximum.at(self.maxima["out_max"], (category[token], expert), norm)
        for kind in self.shape.kinds:
            at = batch.kind == POSITIONS.index(kind)
            part = at[token]
            own = self._rows(batch, expert[part], norm[part], w[part], token[part], use & at)
            self._add_rows(batch, {name: own[name] for name in BY_KIND if name != "cc"}, kind_field(kind, "{}"))
        if self.coactivation is not None:
            self._add_pairs(batch, token, expert)

    def _add_rows(self, batch: Batch, rows: dict[str, np.ndarray], named: str) -> None:
        """Add sums [window, expert] to the fields of their names in the format `named`."""
        for name, row in rows.items():
            into = self.sums[named.format(name)]
            np.add.at(into, (batch.category, batch.shards), batch.weight[:, None] * row)
        np.add.at(self.sums[named.format("cc")], (batch.category, batch.shards), rows["tc"] > 0)

    def _rows(
        self, batch: Batch, expert: np.ndarray, norm: np.ndarray, w: np.ndarray, token: np.ndarray, use: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Sums [window, expert] over these pairs; `use` are the tokens that count."""
        experts, count = self.shape.experts, len(batch.windows)
        key = batch.window[token] * experts + expert

        def total(values: np.ndarray | None) -> np.ndarray:
            """Sum per (window, expert)."""
            return np.bincount(key, values, count * experts).reshape(count, experts).astype(np.float64)

        contribution = w * norm
        n, square, weighted = total(None), total(norm * norm), total(contribution * contribution)
        weight_sum = total(w)
        return {
            "tc": n,
            "wnorm": np.sqrt(weighted),
            "rnorm": np.sqrt(square),
            "wnsq": weighted,
            "rnsq": square,
            "wsum": np.divide(weight_sum, n, out=np.zeros_like(n), where=n > 0),
            "wsum_total": weight_sum,
            "reap_sum": total(contribution),
            "reap_l2_sum": total(contribution * norm),
            "ean_sum": total(norm),
            "tokens": np.repeat(np.bincount(batch.window[use], minlength=count)[:, None], experts, 1),
        }

    def _add_pairs(self, batch: Batch, token: np.ndarray, expert: np.ndarray) -> None:
        chosen = np.zeros((len(batch.places), self.shape.experts))
        chosen[token, expert] = 1
        assert self.coactivation is not None
        for number, (category, weight) in enumerate(batch.runs):
            part = chosen[batch.run == number]
            self.coactivation[category] += weight * (part.T @ part)

    def _logit_rows(self, batch: Batch, index: Any, use: np.ndarray) -> dict[str, np.ndarray]:
        """Sums of the router logits and counts of the runner-up, [window, expert]; empty if no router was recorded."""
        if self._logits is None:
            return {}
        experts, count = self.shape.experts, len(batch.windows)
        raw = self._tokens(self._logits)
        following = self._preference(raw).scatter(1, index, float("-inf")).argmax(1).cpu().numpy()
        logits = raw.double().cpu().numpy()
        good = use & np.isfinite(logits).all(1)
        logits[~good] = 0
        starts = np.searchsorted(batch.window, np.arange(count))  # every window has a token
        runner = np.bincount(batch.window[good] * experts + following[good], minlength=count * experts)
        return {
            "logit_sum": np.add.reduceat(logits, starts),
            "logit_sqsum": np.add.reduceat(np.square(logits), starts),
            "runner_up": runner.reshape(count, experts),
        }


class _Measured:
    """Norms of the expert outputs of one batch, and sums of vectors, which stay on the device."""

    def __init__(self, recorder: LayerRecorder, batch: Batch, routing: Any, use: Any, weight: Any) -> None:
        import torch

        self._weight = weight.detach().reshape(-1)[routing.order].float()
        if recorder.shape.answered:
            # Of classes with replies, prompts do not count towards neurons: only what shapes a reply matters.
            answered = np.array(recorder.shape.answered)[batch.category[batch.window]]
            left_out = torch.from_numpy(answered & (batch.kind == PROMPT)).to(use.device)
            self._weight = torch.where(left_out[routing.token], 0, self._weight)
        self._recorder, self._batch, self._use, self._token = recorder, batch, use, routing.token
        self.norm = torch.empty(len(routing.order), dtype=torch.float32, device=use.device)
        """float32 [P] Euclidean norms of the outputs before weighting; not finite where an output is not."""
        runs = len(batch.runs)
        # Pairs are sorted by expert, then token, and tokens by run: the pairs of an (expert, run) are contiguous.
        cell = routing.expert * runs + torch.from_numpy(batch.run).to(use.device)[routing.token]
        lengths = torch.bincount(cell, minlength=recorder.shape.experts * runs).tolist() if runs > 1 else routing.counts
        self._ends = np.cumsum(lengths).reshape(-1, runs)

    def see(self, seen: Seen) -> None:
        """Measure one group of experts."""
        import torch

        length = torch.linalg.vector_norm(seen.out, dim=-1, dtype=torch.float32)
        self.norm[seen.rows] = length
        good = torch.isfinite(length) & self._use[self._token[seen.rows]]
        # On an accelerator, all() would wait for the device; there the rows are always selected.
        clean = seen.out.device.type == "cpu" and bool(good.all())
        self._sum(self._recorder._vectors, seen, seen.out if clean else torch.where(good[:, None], seen.out, 0))
        if self._recorder._neurons is not None:
            squares = seen.inner.float().square()
            squares = squares if clean else torch.where(good[:, None], squares, 0)
            self._sum(self._recorder._neurons, seen, squares)
            weight = self._weight[seen.rows, None]
            weighted = squares * torch.where(torch.isfinite(weight), weight, 0).square()
            self._sum(self._recorder._weighted, seen, weighted)

    def _sum(self, into: Any, seen: Seen, rows: Any) -> None:
        """Add the rows of each (expert, run) to `into` [class, expert, ...], in float64."""
        start = seen.rows.start
        for expert in range(seen.first, seen.last):
            for (category, weight), end in zip(self._batch.runs, self._ends[expert].tolist(), strict=True):
                if end > start:
                    part = rows[start - seen.rows.start : end - seen.rows.start]
                    into[category, expert] += weight * part.double().sum(0)
                start = max(start, end)


def column_squares(module: Any) -> Any:
    """float64 [E, I] squared norms of the columns of the down projections."""
    import torch

    axis = 2 if module.is_transposed else 1
    return torch.stack([matrix.double().square().sum(axis - 1) for matrix in module.down_proj])


def _sane(rows: Any) -> Any:
    """Bool [tokens]: every value finite and at most MAX_ABS (a comparison with NaN is false)."""
    return rows.abs().flatten(1).amax(-1) <= MAX_ABS
