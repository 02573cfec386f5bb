"""Batches: which windows go through a layer together. Operational; no statistic depends on it.

Invariant: a window is padded to a length that follows from its own length alone, never from its neighbours'. Matrix
kernels treat all rows alike once there are a few of them, so a token's values do not depend on its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trimoe.calibrate.text.calibration import Windows


@dataclass(frozen=True)
class Batch:
    """Windows padded on the right to a common length; those of one class and weight are adjacent."""

    length: int
    windows: tuple[int, ...]
    category: np.ndarray
    """int [window] class of each."""
    weight: np.ndarray
    """float64 [window] weight of each one's document."""
    shards: np.ndarray
    """int [window] bootstrap shard of each."""
    counted: np.ndarray
    """bool [window, length] positions that are measured."""
    real: np.ndarray
    """bool [window, length] positions that are tokens, not padding."""
    kinds: np.ndarray | None = None
    """uint8 [window, length] index into `text.windows.POSITIONS`; None if all are plain text."""

    @cached_property
    def places(self) -> np.ndarray:
        """int [tokens] index of each token in the flattened [window, length]."""
        return np.flatnonzero(self.real.reshape(-1))

    @cached_property
    def window(self) -> np.ndarray:
        """int [tokens] the window of each token; ascending."""
        return self.places // self.length

    @cached_property
    def kind(self) -> np.ndarray:
        """uint8 [tokens] kind of position of each token, an index into `text.windows.POSITIONS`."""
        if self.kinds is None:
            return np.zeros(len(self.places), np.uint8)
        return np.asarray(self.kinds.reshape(-1)[self.places])

    @property
    def full(self) -> bool:
        """Whether there is no padding."""
        return len(self.places) == self.real.size

    @cached_property
    def runs(self) -> list[tuple[int, float]]:
        """(class, weight) of each stretch of windows that share both."""
        keys = list(zip(self.category.tolist(), self.weight.tolist(), strict=True))
        return [key for i, key in enumerate(keys) if not i or key != keys[i - 1]]

    @cached_property
    def run(self) -> np.ndarray:
        """int [tokens] index into `runs`; ascending."""
        changes = (np.diff(self.category) != 0) | (np.diff(self.weight) != 0)
        return np.asarray(np.concatenate([[0], np.cumsum(changes)])[self.window])


def padded_length(tokens: int) -> int:
    """The next multiple of 8; above 128, of an eighth of the power of two below. At most an eighth is padding."""
    step = max(8, 1 << tokens.bit_length() >> 4)
    return -(-tokens // step) * step


def batches_of(windows: Windows, batch_tokens: int) -> list[Batch]:
    """Batches of windows of one padded length, the longest first, so that the peak of memory comes first.

    A batch holds at most `batch_tokens` tokens with its padding, or one window if that is longer.
    """
    groups: dict[int, list[int]] = {}
    for i, window in enumerate(windows.windows):
        groups.setdefault(padded_length(len(window.tokens)), []).append(i)
    result = []
    for length in sorted(groups, reverse=True):
        chosen = sorted(groups[length], key=lambda i: (windows.windows[i].category, windows.windows[i].weight, i))
        result += [_batch(windows, part, length) for part in _parts(chosen, max(1, batch_tokens // length))]
    return result


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _batch(windows: Windows, chosen: Sequence[int], length: int) -> Batch:
    members = [windows.windows[i] for i in chosen]
    real, counted = np.zeros((len(chosen), length), bool), np.zeros((len(chosen), length), bool)
    kinds = np.zeros((len(chosen), length), np.uint8)
    for row, window in enumerate(members):
        real[row, : len(window.tokens)] = True
        counted[row, : len(window.tokens)] = window.counted
        if window.positions is not None:
            kinds[row, : len(window.tokens)] = window.positions
    return Batch(
        length=length,
        windows=tuple(chosen),
        category=np.array([w.category for w in members]),
        weight=np.array([w.weight for w in members], np.float64),
        shards=np.array([w.shard for w in members]),
        counted=counted,
        real=real,
        kinds=kinds if any(w.positions is not None for w in members) else None,
    )


def token_ids(windows: Windows, batch: Batch) -> np.ndarray:
    """int64 [window, length] token ids, 0 for padding."""
    tokens = np.zeros(batch.real.shape, np.int64)
    for row, i in enumerate(batch.windows):
        tokens[row, : len(windows.windows[i].tokens)] = windows.windows[i].tokens
    return tokens
