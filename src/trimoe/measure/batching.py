"""Which windows go through a layer together. Operational: it changes no statistic beyond rounding."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimoe.measure.accumulate import Batch
from trimoe.measure.calibration import Windows


def batches_of(windows: Windows, batch_tokens: int) -> list[Batch]:
    """Micro-batches of one class and weight, longest windows first so that little is padded.

    A batch holds at most `batch_tokens` tokens with its padding, or one window if that is longer.
    """
    groups: dict[tuple[int, float], list[int]] = {}
    for i, window in enumerate(windows.windows):
        groups.setdefault((window.category, window.weight), []).append(i)
    result = []
    for category, weight in sorted(groups):
        rest = sorted(groups[category, weight], key=lambda i: (-len(windows.windows[i].tokens), i))
        at = 0
        while at < len(rest):
            length = len(windows.windows[rest[at]].tokens)
            chosen = rest[at : at + max(1, batch_tokens // length)]
            at += len(chosen)
            result.append(_batch(windows, chosen, category, weight, length))
    return result


def _batch(windows: Windows, chosen: Sequence[int], category: int, weight: float, length: int) -> Batch:
    real, counted = np.zeros((len(chosen), length), bool), np.zeros((len(chosen), length), bool)
    for row, i in enumerate(chosen):
        real[row, : len(windows.windows[i].tokens)] = True
        counted[row, : len(windows.windows[i].tokens)] = windows.windows[i].counted
    shards = np.array([windows.windows[i].shard for i in chosen])
    return Batch(category, length, tuple(chosen), shards, weight, counted, real)


def token_ids(windows: Windows, batch: Batch) -> Any:
    """Tensor [windows, length] of token ids, 0 where there is padding."""
    import torch

    tokens = np.zeros(batch.real.shape, np.int64)
    for row, i in enumerate(batch.windows):
        tokens[row, : len(windows.windows[i].tokens)] = windows.windows[i].tokens
    return torch.from_numpy(tokens)
