"""The greedy search: drop the expert whose removal changes the layer's output least, again and again.

For T tokens, m_t(S) is the mixture of the k preferred experts of the kept set S, weighted as the router would weight
them, and y_t = N(m_t(all)), where N is the norm that follows the mixture (or nothing). Each step drops the expert e
that makes the sum over tokens of |N(m_t(S - e)) - y_t|^2 smallest. Only tokens that use e, or whose next choice e is,
change, so all else is carried over. Where a softmax is corrected before the choice, a drop can change every token's
order; then all tokens are mixed again after each drop, and prices take the order before it.
Invariants: fp32 outputs, float64 sums in a fixed order; ties go to the expert with the least router mass, then to the
lower id. The order is nested: one search serves every budget.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimoe.calibrate.recon.gates import Gates


@dataclass(frozen=True)
class Order:
    """`dropped` [E]: the experts, first dropped first; the last k are never dropped, the most needed one last.
    `error` [E, groups]: sum of squared changes per group of tokens after each of these drops; `energy` [groups]: sum
    of |y_t|^2."""

    dropped: list[int]
    error: np.ndarray
    energy: np.ndarray


def search(
    outputs: Any, gates: Gates, k: int, norm: Callable[[Any], Any] | None, weight: np.ndarray, group: np.ndarray
) -> Order:
    """The order for `outputs` [E, T, H] of all experts for T tokens. `weight` float64 [T] and `group` int [T] are of
    the tokens."""
    return _Search(outputs, gates, k, norm, weight, group).run()


class _Search:
    def __init__(self, outputs: Any, gates: Gates, k: int, norm: Any, weight: np.ndarray, group: np.ndarray) -> None:
        import torch

        self.outputs, self.gates, self.k = outputs, gates, k
        self.norm = norm or (lambda mixture: mixture)
        self.weight, self.group = weight, group
        self.experts, self.tokens, _ = outputs.shape
        self.device = outputs.device
        self.kept = torch.ones(self.experts, dtype=torch.bool, device=self.device)
        self.gain = gates.score * gates.scale
        everyone = torch.arange(self.tokens, device=self.device)
        width = min(k + 1, self.experts)
        self.chosen = torch.zeros((self.tokens, width), dtype=torch.long, device=self.device)
        self.sum = torch.zeros((self.tokens, outputs.shape[2]), device=self.device)
        self.total = torch.ones(self.tokens, device=self.device)
        self.cost = torch.zeros((self.tokens, k), device=self.device)
        self._choose(everyone)
        self._mix(everyone)
        self.target = self.norm(self.sum / self.total[:, None])
        self.error = torch.zeros(self.tokens, device=self.device)

    def run(self) -> Order:
        """Drop one expert after the other until k are left."""
        import torch

        groups = int(self.group.max()) + 1
        mass = (self.gates.score / self.gates.score.sum(1, keepdim=True)).double().sum(0).cpu().numpy()
        energy = self._by_group(self.target.double().square().sum(1).cpu().numpy(), groups)
        dropped: list[int] = []
        errors = []
        self._cost(torch.arange(self.tokens, device=self.device))
        while len(dropped) < self.experts - self.k:
            price = self._prices()
            left = np.flatnonzero(self.kept.cpu().numpy())
            best = int(left[np.lexsort((left, mass[left], price[left]))[0]])
            dropped.append(best)
            self._drop(best)
            errors.append(self._by_group(self.error.double().cpu().numpy(), groups))
        left = np.flatnonzero(self.kept.cpu().numpy())
        last = errors[-1] if errors else np.zeros(groups)
        dropped += left[np.lexsort((left, mass[left]))].tolist()
        return Order(dropped, np.stack(errors + [last] * len(left)), energy)

    def _by_group(self, values: np.ndarray, groups: int) -> np.ndarray:
        return np.bincount(self.group, self.weight * values, groups)

    def _prices(self) -> np.ndarray:
        """float64 [E] change of the error if this expert went next."""
        chosen, cost = self.chosen[:, : self.k].cpu().numpy(), self.cost.double().cpu().numpy()
        price = np.bincount(chosen.ravel(), (cost * self.weight[:, None]).ravel(), self.experts)
        if self.gates.form == "all":
            price = price + self._prices_of_unused()
        return price

    def _prices_of_unused(self) -> np.ndarray:
        """What the removal of an expert changes for tokens that do not use it: all their weights grow alike."""
        mixture, target = (self.sum / self.total[:, None]).double(), self.target.double()
        total = self.total.double()[:, None]
        factor = total / (total - self.gates.score.double()).clamp_min(total * 1e-9)
        own, common = mixture.square().sum(1)[:, None], (mixture * target).sum(1)[:, None]
        change = factor.square() * own - 2 * factor * common + target.square().sum(1)[:, None]
        change -= self.error.double()[:, None]
        change.scatter_(1, self.chosen[:, : self.k], 0.0)
        return np.asarray((change.cpu().numpy() * self.weight[:, None]).sum(0))

    def _drop(self, expert: int) -> None:
        import torch

        self.kept[expert] = False
        every = self.gates.form == "all" or self.gates.correction is not None
        hit = torch.ones(self.tokens, dtype=torch.bool, device=self.device) if every else (self.chosen == expert).any(1)
        changed = hit.nonzero()[:, 0]
        if not len(changed):
            return
        self._choose(changed)
        self._mix(changed)
        mixture = self.sum[changed] / self.total[changed, None]
        self.error[changed] = (self.norm(mixture) - self.target[changed]).square().sum(1)
        self._cost(changed)

    def _choose(self, tokens: Any) -> None:
        """The k preferred experts that are left, and the next one (the last again where none is left)."""
        order = self.gates.order_of(tokens, self.kept)
        kept = self.kept[order]
        width = self.chosen.shape[1]
        place = kept.long().cumsum(1)
        for at in range(width):
            is_it = kept & (place == at + 1)
            self.chosen[tokens, at] = order.gather(1, is_it.long().argmax(1, keepdim=True))[:, 0]

    def _part(self, tokens: Any, expert: Any) -> Any:
        """Weighted outputs before normalisation: float32 [n, H]."""
        return self.outputs[expert, tokens].float() * self.gain[tokens, expert][:, None]

    def _mix(self, tokens: Any) -> None:
        chosen = self.chosen[tokens]
        total = self.sum.new_zeros((len(tokens), self.sum.shape[1]))
        for at in range(self.k):
            total += self._part(tokens, chosen[:, at])
        self.sum[tokens] = total
        score = self.gates.score[tokens]
        if self.gates.form == "chosen":
            self.total[tokens] = score.gather(1, chosen[:, : self.k]).sum(1)
        elif self.gates.form == "all":
            self.total[tokens] = (score * self.kept).sum(1)

    def _cost(self, tokens: Any) -> None:
        """For each chosen expert of these tokens, how the error would change if the next one took its place."""
        if int(self.kept.sum()) <= self.k:
            return
        chosen, score = self.chosen[tokens], self.gates.score[tokens]
        following = chosen[:, self.k]
        gained, more = self._part(tokens, following), score.gather(1, following[:, None])[:, 0]
        for at in range(self.k):
            gone = chosen[:, at]
            less = score.gather(1, gone[:, None])[:, 0]
            total = self.total[tokens]
            if self.gates.form == "chosen":
                total = total - less + more
            elif self.gates.form == "all":
                total = total - less
            # Relative to sums in fp32: a total that cancels to nothing would mean a token without any router mass.
            mixture = (self.sum[tokens] - self._part(tokens, gone) + gained) / total.clamp_min(1e-30)[:, None]
            error = (self.norm(mixture) - self.target[tokens]).square().sum(1)
            self.cost[tokens, at] = error - self.error[tokens]
