"""PCGrad: every task's gradient loses its component along the tasks it conflicts with.

    for each task i, over the other tasks j in random order:
        if h_i · g_j < 0:    h_i <- h_i - (h_i · g_j / ‖g_j‖²) g_j          h_i starts as g_i
    d = sum_i h_i

On the Gram matrix, ``h_i = sum_j C[i, j] g_j`` and ``w = 1ᵀ C``; all tasks i advance together. The result is
the sum of gradients where nothing conflicts. Weights are at least 1. For two tasks both new gradients agree with
both old ones; for more the later projections may undo earlier ones.

Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polytask.balance.base import GramBalancer, Level
from polytask.balance.draws import generator


def surgery(gram: Tensor, orders: Tensor) -> Tensor:
    """Return the weights ``(T,)`` for given orders ``(T, T - 1)``: row i holds the other tasks as task i meets them."""
    A = gram.numpy()
    if (A >= 0).all():
        return torch.ones_like(gram[0])
    squared = A.diagonal()
    met = np.ascontiguousarray(orders.numpy().T)
    scales = np.where(squared > 0, -1 / np.where(squared > 0, squared, 1.0), 0.0)[met]  # a zero gradient takes nothing
    taken = np.empty_like(scales)
    inner, away = A.copy(), np.empty_like(A)  # inner[i, j] = h_i · g_j
    flat, places = inner.ravel(), met + len(A) * np.arange(len(A))
    for place, scale, column, out in zip(places, scales, met, taken, strict=True):
        flat.take(place, out=out, mode="clip")
        np.minimum(out, 0.0, out=out)
        out *= scale
        A.take(column, 0, out=away, mode="clip")
        away *= out[:, None]
        inner += away
    return torch.from_numpy(1 + np.bincount(met.ravel(), taken.ravel(), len(A)))


def random_orders(n_tasks: int, draws: torch.Generator) -> Tensor:
    """Return orders ``(T, T - 1)``, one independent permutation of the other tasks for each task."""
    keys = torch.rand(n_tasks, n_tasks, generator=draws)
    keys.fill_diagonal_(2.0)
    return keys.argsort(1)[:, :-1]


class PCGrad(GramBalancer):
    """Sum of gradients, each projected away from its conflicts.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    seed
        Seed of the orders.
    """

    drawn: Tensor

    def __init__(self, n_tasks: int, *, level: Level = "exact", every: int = 1, seed: int = 0) -> None:
        super().__init__(n_tasks, level=level, every=every)
        self.seed = seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        """Return the weights for the next orders; the count of draws is the only state."""
        orders = random_orders(len(gram), generator(self.seed, int(self.drawn)))
        self.drawn += 1
        return surgery(gram, orders)
