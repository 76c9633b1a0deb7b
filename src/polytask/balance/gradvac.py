"""GradVac: pairs of gradients are brought to a cosine they should have, learned from how they usually stand.

    for each task i, over the other tasks j in random order, with φ = cos(h_i, g_j):
        if φ < φ*[i, j]:   h_i <- h_i + ‖h_i‖ (φ* √(1 - φ²) - φ √(1 - φ*²)) / (‖g_j‖ √(1 - φ*²)) g_j
        φ*[i, j] <- (1 - β) φ*[i, j] + β φ
    d = sum_i h_i

Afterwards ``cos(h_i, g_j) = φ*``; with φ* = 0 it is PCGrad's step. φ* starts at 0 and is remembered per pair.

Wang, Tsvetkov, Firat, Cao, Gradient Vaccine, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer, Level
from polytask.balance.draws import generator
from polytask.balance.pcgrad import random_orders
from polytask.core.errors import InputError

_TINY = 1e-12


def vaccinate(gram: Tensor, targets: Tensor, orders: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return weights ``(T,)`` and the new target cosines ``(T, T)`` for given orders ``(T, T - 1)``."""
    n_tasks = len(gram)
    everyone = torch.arange(n_tasks)
    length = gram.diagonal().sqrt()
    coefficients = torch.eye(n_tasks, dtype=gram.dtype)
    targets, inner = targets.clone(), gram.clone()
    for met in orders.T:
        own = (inner * coefficients).sum(1).clamp(min=0).sqrt()
        real = (own > 0) & (length[met] > 0)
        cosine = torch.where(real, inner[everyone, met] / (own * length[met]).clamp(min=_TINY**2), 0.0).clamp(-1, 1)
        target = targets[everyone, met]
        sine, target_sine = (1 - cosine**2).sqrt(), (1 - target**2).clamp(min=_TINY).sqrt()
        added = own * (target * sine - cosine * target_sine) / (length[met] * target_sine).clamp(min=_TINY**2)
        added = torch.where(real & (cosine < target), added, 0.0)
        coefficients[everyone, met] += added
        inner += added[:, None] * gram[met]
        targets[everyone, met] = torch.where(real, (1 - beta) * target + beta * cosine, target)
    return coefficients.sum(0), targets


class GradVac(GramBalancer):
    """Sum of gradients, each turned to the cosine it usually has with the others.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    beta
        How fast the target cosines follow, in [0, 1].
    seed
        Seed of the orders.

    Attributes
    ----------
    targets
        Target cosines, ``(T, T)``.
    """

    drawn: Tensor
    targets: Tensor

    def __init__(
        self, n_tasks: int, *, level: Level = "exact", every: int = 1, beta: float = 0.01, seed: int = 0
    ) -> None:
        super().__init__(n_tasks, level=level, every=every)
        if not 0 <= beta <= 1:
            raise InputError(f"beta is {beta}; give a number in [0, 1]")
        self.beta, self.seed = beta, seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.register_buffer("targets", torch.zeros(n_tasks, n_tasks, dtype=torch.float64))

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of all T tasks and update the target cosines."""
        return self.task_weights(gram, losses, range(self.n_tasks))

    def task_weights(self, gram: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:  # noqa: ARG002
        orders = random_orders(len(gram), generator(self.seed, int(self.drawn)))
        self.drawn += 1
        pairs = torch.as_tensor(tasks)[:, None], torch.as_tensor(tasks)
        targets = self.targets.cpu()
        weights, targets[pairs] = vaccinate(gram, targets[pairs], orders, self.beta)
        self.targets.copy_(targets)
        return weights
