"""UPGrad: every gradient is projected onto the cone of directions that hurt no task, then averaged.

    d = (1/T) sum_i Π(g_i),     Π(g) = argmin_h ‖h - g‖²   s.t.  h · g_t >= 0 for all t

On the Gram matrix, ``T Π(g_i) = sum_t V[i, t] g_t`` with ``min_v vᵀ A v, v >= e_i``: T quadratic programs with
one matrix, solved together. The mean of gradients where nothing conflicts; ``d · g_t >= 0`` for every task.

Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer
from polytask.balance.solvers import nonnegative_quadratic, ridged


class UPGrad(GramBalancer):
    """Mean of gradients projected onto the dual cone.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    """

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        if bool((gram >= 0).all()):
            return torch.full_like(gram[0], 1 / len(gram))
        length = gram.diagonal().sqrt()
        length = torch.where(length > 0, length, 1.0)
        cosines = ridged(gram / length[:, None] / length)
        projected = nonnegative_quadratic(cosines.numpy(), -cosines.numpy())
        return (1 + (torch.from_numpy(projected) * length[:, None] / length).sum(0)) / len(gram)
