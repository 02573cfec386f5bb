"""The Muon optimizer: momentum with orthogonalized updates, for matrices and stacks of matrices (Jordan et al. 2024).

On the bundled model it needs a third of AdamW's steps. Embeddings, routers and vectors use AdamW.
"""

from collections.abc import Iterable

import torch


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of [..., m, n] near 1: five Newton-Schulz steps with the published coefficients."""
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon:
    """Nesterov momentum 0.95, weight decay 0.02; steps are scaled by max(1, sqrt(rows / columns))."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._momentum = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply one update and clear the gradients."""
        for parameter, momentum in zip(self.parameters, self._momentum, strict=True):
            gradient = parameter.grad
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95))
            shape = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
            parameter.mul_(1 - rate * 0.02)
            parameter.add_(update, alpha=-rate * shape)
            parameter.grad = None
