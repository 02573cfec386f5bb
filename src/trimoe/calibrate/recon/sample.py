"""Which positions are reconstructed: a seeded sample of the reply positions, equally many of each class.

Invariant: the sample follows from the windows and the number alone, whatever the batches are. A class with fewer
positions than its share gives all it has, and the others share the rest.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from trimoe.calibrate.forward.batching import Batch
from trimoe.calibrate.stats.positions import REPLIES
from trimoe.calibrate.text.windows import POSITIONS, Window, Windows
from trimoe.errors import CalibrationError
from trimoe.model.checkpoint import Checkpoint

DEFAULT = 2000
"""Positions of a layer that are reconstructed where nothing else is asked for."""


@dataclass(frozen=True)
class Sample:
    """Positions of each window, ascending; a window without any is absent."""

    positions: dict[int, np.ndarray]

    def __len__(self) -> int:
        return sum(map(len, self.positions.values()))

    def rows(self, batch: Batch) -> np.ndarray:
        """int [n] the sampled tokens of a batch among its real ones."""
        real = np.cumsum(batch.real.reshape(-1)) - 1
        found = [
            real[row * batch.length + self.positions[number]]
            for row, number in enumerate(batch.windows)
            if number in self.positions
        ]
        return np.concatenate(found) if found else np.zeros(0, int)


def choose_sample(windows: Windows, count: int) -> Sample:
    """At most `count` counted reply positions (in plain text, any counted ones)."""
    pools = [np.zeros((0, 2), int) for _ in windows.classes]
    for number, window in enumerate(windows.windows):
        at = np.flatnonzero(_replies(window))
        found = np.stack([np.full(len(at), number), at], 1)
        pools[window.category] = np.concatenate([pools[window.category], found])
    left, chosen = count, []
    for turn, category in enumerate(sorted(range(len(pools)), key=lambda i: len(pools[i]))):
        pool, share = pools[category], left // (len(pools) - turn)
        seed = hashlib.sha256(f"{windows.set_hash} {windows.classes[category]}".encode()).digest()
        order = np.random.default_rng(list(seed)).permutation(len(pool))[:share]
        chosen.append(pool[order])
        left -= len(order)
    rows = np.concatenate(chosen)
    return Sample({int(n): np.sort(rows[rows[:, 0] == n, 1]) for n in np.unique(rows[:, 0])})


def _replies(window: Window) -> np.ndarray:
    if window.positions is None:
        return window.counted
    return window.counted & np.isin(window.positions, [POSITIONS.index(kind) for kind in REPLIES])


def sample_for(checkpoint: Checkpoint, windows: Windows, count: int | None, sequential: int | None) -> Sample | None:
    """The sample of a run, or None without reconstruction.

    `count` None means `DEFAULT` where the set has replies and a cut of the model can be exact. Raises
    `CalibrationError` if reconstruction is asked for and impossible, or if `sequential` does not fit the model.
    """
    why = checkpoint.cannot_cut or ("its experts are routed in groups" if checkpoint.groups is not None else None)
    if why is None and checkpoint.hf.routing.weight_on == "input":
        why = "the router's weight multiplies what enters an expert"
    if sequential is not None:
        _require_budget(checkpoint, sequential, count)
    if count is None:
        has_replies = {"own", "recorded"} & set(windows.kinds)
        count = DEFAULT if sequential is not None or (has_replies and why is None) else 0
    if not count:
        return None
    if why is not None:
        raise CalibrationError(
            f"the layers of family {checkpoint.family.name} cannot be reconstructed: {why}",
            expected="experts chosen by the largest scores, and weights on their outputs",
            actual=why,
            remedy="leave out --recon and --sequential, and use another recipe",
        )
    return choose_sample(windows, count)


def _require_budget(checkpoint: Checkpoint, keep: int, count: int | None) -> None:
    if not checkpoint.top_k <= keep < checkpoint.num_experts or count == 0:
        raise CalibrationError(
            f"layers cannot be cut to {keep} experts one after the other",
            expected=f"{checkpoint.top_k} to {checkpoint.num_experts - 1} experts, and --recon above 0",
            actual=f"{keep} experts, --recon {'2000' if count is None else count}",
            remedy="correct --sequential",
        )
