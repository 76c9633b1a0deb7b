"""MGDA: the shortest vector in the convex hull of the gradients, a direction that hurts no task.

    min_w ‖sum_t w_t g_t‖²    s.t.  w >= 0, sum_t w_t = 1

The direction d satisfies ``d · g_t >= ‖d‖²`` for every task, with equality where ``w_t > 0``; it is 0 exactly at
Pareto-stationary points, and so as soon as one task's gradient is 0. For two tasks
``w_1 = clip((g_2 - g_1) · g_2 / ‖g_1 - g_2‖², 0, 1)``. Solved to the end (:mod:`polytask.balance.solvers`).

Large gradients get small weights; ``normalise`` divides the gradients by their length, their loss or
both before the comparison, and the direction is then built from the divided gradients.

Désidéri, Multiple-gradient descent algorithm, Comptes Rendus Mathématique 350, 2012; Sener and Koltun,
Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018 (``level="features"`` is their MGDA-UB).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer, Level
from polytask.balance.solvers import minimum_norm
from polytask.core.errors import InputError, unknown

NORMALISATIONS = ("none", "l2", "loss", "loss+")


class MGDA(GramBalancer):
    """Weights of the shortest convex combination of gradients; they sum to 1 when nothing is normalised.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    normalise
        Divide each gradient by nothing, by its length ("l2"), by its loss ("loss") or by both ("loss+").
    """

    def __init__(
        self,
        n_tasks: int,
        *,
        level: Level = "exact",
        every: int = 1,
        normalise: Literal["none", "l2", "loss", "loss+"] = "none",
    ) -> None:
        super().__init__(n_tasks, level=level, every=every)
        if normalise not in NORMALISATIONS:
            raise InputError(unknown("normalise", normalise, NORMALISATIONS))
        self.normalise = normalise

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        divisor = torch.ones_like(losses)
        if self.normalise in ("l2", "loss+"):
            divisor = divisor * gram.diagonal().sqrt()
        if self.normalise in ("loss", "loss+"):
            divisor = divisor * losses.abs()
        divisor = torch.where(divisor > 0, divisor, 1.0)
        return minimum_norm(gram / divisor[:, None] / divisor) / divisor
