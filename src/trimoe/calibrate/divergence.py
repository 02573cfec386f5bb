"""KL divergence between a model and one made from it, on a text, with one layer of one model in memory.

Per window: KL(original || other) of the next-token distributions in nats, and the other model's loss on the text. Means
are over tokens. Windows of one document are not independent, so documents are the sampling unit of every interval
(percentile bootstrap, with the same draws for all compared models, so that differences are paired).
Invariants: float32 logits, float64 sums. Not guaranteed: that a smaller divergence means better generation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trimoe.calibrate.forward.batching import Batch, batches_of, token_ids
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.text.windows import Windows
from trimoe.io.progress import Progress

RESAMPLES = 10_000
_POSITIONS = 512
"""Positions whose logits are in memory at once."""


@dataclass(frozen=True)
class Divergence:
    """Sums per window of a text: tokens, KL divergence from the original, and the other model's loss."""

    windows: Windows
    tokens: np.ndarray
    kl: np.ndarray
    loss: np.ndarray

    @property
    def mean(self) -> float:
        """KL divergence, nats per token."""
        return float(self.kl.sum() / self.tokens.sum())

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """[document] sums."""
        return np.bincount([w.document for w in self.windows.windows], values)

    def class_means(self, values: np.ndarray) -> dict[str, float]:
        """Mean per token of each class."""
        category = [w.category for w in self.windows.windows]
        sums, counts = np.bincount(category, values), np.bincount(category, self.tokens)
        return {name: float(sums[i] / counts[i]) for i, name in enumerate(self.windows.classes)}


def interval(divergence: Divergence, values: np.ndarray) -> list[float]:
    """95 % interval of the mean per token from per-window sums: a bootstrap over documents, with fixed draws."""
    sums, counts = divergence.by_document(values), divergence.by_document(divergence.tokens)
    present = counts > 0
    sums, counts = sums[present], counts[present]
    rng, means = np.random.default_rng(0), []
    for _ in range(0, RESAMPLES, 500):
        draws = rng.integers(0, len(sums), (500, len(sums)))
        means.append(sums[draws].sum(1) / counts[draws].sum(1))
    return [float(v) for v in np.quantile(np.concatenate(means), (0.025, 0.975))]


class Text:
    """A text as batches of windows, to be run through models."""

    def __init__(self, windows: Windows, batch_tokens: int = 4096) -> None:
        self.windows = windows
        self.batches: list[Batch] = batches_of(windows, batch_tokens)
        self.vocabulary = np.unique(np.concatenate([[0], *(w.tokens for w in windows.windows)]))

    def enter(self, model: LayerModel) -> list[Any]:
        """Hidden states [windows, length, H] that enter layer 0, by batch."""
        import torch

        model.load_embedding(self.vocabulary)
        try:
            with torch.no_grad():
                return [model.embed(token_ids(self.windows, batch)) for batch in self.batches]
        finally:
            model.free_embedding()

    def through(self, model: LayerModel, progress: Progress | None = None, note: str = "") -> list[Any]:
        """Hidden states after the last layer, by batch; in float32 they take 4 bytes x H per token of memory."""
        import torch

        hidden, layers = self.enter(model), model.checkpoint.num_layers
        for layer in range(layers):
            model.load(layer)
            with torch.no_grad():
                hidden = [model.run(layer, one) for one in hidden]
            model.free(layer)
            if progress is not None:
                progress(layer + 1, layers, note)
        return hidden

    def divergence(self, original: LayerModel, first: list[Any], other: LayerModel, second: list[Any]) -> Divergence:
        """Compare two models from their last hidden states. Both heads must be loaded (`load_head`)."""
        import torch

        count = len(self.windows.windows)
        tokens, kl, loss = np.zeros(count), np.zeros(count), np.zeros(count)
        with torch.no_grad():
            for batch, one, two in zip(self.batches, first, second, strict=True):
                for row, window in enumerate(batch.windows):
                    ids = torch.from_numpy(self.windows.windows[window].tokens).to(one.device)
                    tokens[window] = len(ids) - 1
                    for at in range(0, len(ids) - 1, _POSITIONS):
                        part = slice(at, min(at + _POSITIONS, len(ids) - 1))
                        p, q = (
                            m.logits(h[row : row + 1, part])[0].float().log_softmax(-1)
                            for m, h in ((original, one), (other, two))
                        )
                        kl[window] += float((p.exp() * (p - q)).sum(-1).double().sum())
                        following = ids[part.start + 1 : part.stop + 1]
                        loss[window] -= float(q.gather(-1, following[:, None]).double().sum())
        return Divergence(self.windows, tokens, kl, loss)
