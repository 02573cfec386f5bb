"""Reconstruction of one layer: collects the sampled tokens while it runs, then orders its experts.

The result has two fields [class, expert], `RECON_RANK` and `RECON_ERROR`. Memory: see `needs`.
"""

from typing import Any

import numpy as np

from trimoe.calibrate.forward.batching import Batch
from trimoe.calibrate.forward.experts import one_expert
from trimoe.calibrate.forward.routing import Router
from trimoe.calibrate.recon.gates import fit
from trimoe.calibrate.recon.greedy import search
from trimoe.calibrate.recon.needs import item_size
from trimoe.calibrate.recon.sample import Sample
from trimoe.calibrate.stats.fields import RECON_ERROR, RECON_RANK
from trimoe.errors import CalibrationError


class Reconstruction:
    """The sampled tokens of one layer."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._inputs: list[Any] = []
        self._logits: list[Any] = []
        self._index: list[Any] = []
        self._weight: list[Any] = []
        self._doubles: list[np.ndarray] = []
        self._category: list[np.ndarray] = []

    def see(self, batch: Batch, x: Any, logits: Any, index: Any, weight: Any, use: np.ndarray) -> None:
        """Take the sampled tokens of a batch; `x` [tokens, H], `logits` [tokens, E], `use` bool [tokens]."""
        rows = self._sample.rows(batch)
        rows = rows[use[rows]]
        if not len(rows):
            return
        for into, values in (
            (self._inputs, x),
            (self._logits, logits),
            (self._index, index),
            (self._weight, weight),
        ):
            into.append(values[rows].detach().clone())
        self._doubles.append(batch.weight[batch.window[rows]])
        self._category.append(batch.category[batch.window[rows]])

    def order(
        self, experts: Any, router: Router, norm: Any, classes: int, score: str, where: str
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """The experts in the order in which they are dropped, and the two fields. `norm` follows the mixture, or is
        None. Raises `CalibrationError` if the router is of no known form."""
        import torch

        if not self._inputs:
            raise CalibrationError(
                f"{where} cannot be reconstructed: no position of the sample has sound values",
                expected="hidden states that are finite and below 1e6",
                actual="none of the positions that were drawn",
                remedy="calibrate with --recon 0; `masked` in the result says how many tokens were left out",
            )
        x, logits, index = torch.cat(self._inputs), torch.cat(self._logits), torch.cat(self._index)
        count = logits.shape[1]
        gates = fit(
            logits,
            router.preference(logits),
            index,
            torch.cat(self._weight),
            router.scale(count, x.device),
            score,
            x.element_size(),
            where,
            router.correction(),
        )
        if norm is not None and gates.form == "all":
            raise CalibrationError(
                f"{where} cannot be reconstructed: a norm follows weights over all experts",
                expected="a norm after weights of the chosen experts, or none",
                remedy="calibrate without reconstruction (--recon 0), and use another recipe",
            )
        item = item_size(count, len(x), x.shape[1], x.element_size())
        kind = x.dtype if item == x.element_size() else torch.bfloat16
        outputs = torch.empty((count, *x.shape), dtype=kind, device=x.device)
        for expert in range(count):
            outputs[expert] = one_expert(experts, x, expert)
        category = np.concatenate(self._category)
        found = search(outputs, gates, index.shape[1], norm, np.concatenate(self._doubles), category)
        rank = np.empty(count)
        rank[found.dropped] = np.arange(1, count + 1)
        error = np.zeros((classes, count))
        groups = len(found.energy)
        shares = np.divide(found.error, found.energy, out=np.zeros_like(found.error), where=found.energy > 0)
        error[:groups, found.dropped] = shares.T
        return found.dropped, {RECON_RANK: np.repeat(rank[None], classes, 0), RECON_ERROR: error}
