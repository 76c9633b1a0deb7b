"""CAGrad: near the average gradient, the direction that improves the worst-off task most.

    max_d min_t d · g_t    s.t.  ‖d - g_0‖ <= c ‖g_0‖,      g_0 = (1/T) sum_t g_t

``d = g_0 + sum_t u_t g_t`` with ``u >= 0`` and ``uᵀ A u = c² ‖g_0‖²``. With τ the value of the maximum, u solves
``min_u ½ uᵀ A u - (τ - A 1/T)ᵀ u, u >= 0``, whose length grows with τ: τ is found by walking along the pieces on
which u is linear in τ. c = 0 is the average; for large c the direction is MGDA's.

Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

from polytask.balance.base import GramBalancer, Level
from polytask.balance.solvers import RIDGE, Floats, nonnegative_quadratic
from polytask.core.errors import InputError


def conflict_averse(gram: Tensor, c: float) -> Tensor:
    """Return the weights ``1/T + u``, ``(T,)``."""
    n_tasks = len(gram)
    mean = np.full(n_tasks, 1 / n_tasks)
    G = gram.numpy()
    scale = G.diagonal().max()
    if c == 0 or scale == 0:
        return torch.from_numpy(mean)
    gains = G @ mean / scale
    radius2 = c**2 * (mean @ gains)
    if radius2 <= 1e-14 * c**2:  # the gradients cancel: there is no ball to search
        return torch.from_numpy(mean)
    A = G / scale
    A.ravel()[:: n_tasks + 1] += RIDGE
    low = gains.min()
    high = (gains + np.sqrt(radius2 * A.diagonal())).min()
    high += 1e-9 * (high - low)  # the bound itself is the answer where one task is behind all others
    free = (gains < (low + high) / 2)[None]
    level = _on_this_piece(A, gains, free[0], radius2)
    for _ in range(100):
        if not low < level < high:
            level = (low + high) / 2
        u = nonnegative_quadratic(A, (level - gains)[None], free)[0]
        excess = u @ A @ u - radius2
        if abs(excess) <= 1e-10 * radius2 or high - low <= 1e-15:
            break
        low, high = (level, high) if excess < 0 else (low, level)
        level = _on_this_piece(A, gains, free[0], radius2)
    return torch.from_numpy(mean + u)


def _on_this_piece(A: Floats, gains: Floats, free: NDArray[np.bool_], radius2: float) -> float:
    """Return the τ at which ``uᵀ A u`` has its value while these variables stay free; -inf when there is none."""
    if not free.any():
        return -np.inf
    right = np.stack([np.ones(int(free.sum())), gains[free]], 1)
    rates = lapack.dposv(A[np.ix_(free, free)], right)[1]
    aa, ab, bb = rates[:, 0].sum(), rates[:, 1].sum(), rates[:, 1] @ gains[free]  # uᵀ A u = τ² aa - 2 τ ab + bb
    root = ab**2 - aa * (bb - radius2)
    return float((ab + root**0.5) / aa) if root >= 0 < aa else -np.inf


class CAGrad(GramBalancer):
    """The average gradient, moved towards the worst-off task within a ball.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    c
        Radius of the ball relative to the average gradient, >= 0.
    rescale
        Divide the direction by ``1 + c²``, as one of the authors' variants does, to keep the length of the step.
    """

    def __init__(
        self, n_tasks: int, *, level: Level = "exact", every: int = 1, c: float = 0.5, rescale: bool = False
    ) -> None:
        super().__init__(n_tasks, level=level, every=every)
        if not c >= 0:
            raise InputError(f"c is {c}; give a number >= 0")
        self.c, self.rescale = c, rescale

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        weights = conflict_averse(gram, self.c)
        return weights / (1 + self.c**2) if self.rescale else weights
