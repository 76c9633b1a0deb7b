"""Nash-MTL: the tasks bargain for the direction; the result is proportionally fair.

    A a = 1 / a  (elementwise), a > 0:    a_t (d · g_t)  ... every task gets  d · g_t = 1 / a_t

Maximises ``sum_t log(d · g_t)`` over a ball. Scaling a task's gradient scales its weight inversely and leaves d
unchanged. ``‖d‖² = T`` always, so the length is set as in the authors' code: weights solve the equation for
``A / ‖A‖`` and d is then shortened to ``max_norm``. Solved by Newton's method. Tasks whose gradient is 0
have nothing to bargain for and get weight 0.

Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer, Level
from polytask.balance.solvers import fair, where_moving
from polytask.core.errors import InputError


class NashMTL(GramBalancer):
    """Weights of Nash's bargaining solution.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    max_norm
        Largest length of the direction; None leaves the solution of ``A a = 1 / a`` as it is.
    """

    def __init__(self, n_tasks: int, *, level: Level = "exact", every: int = 1, max_norm: float | None = 1.0) -> None:
        super().__init__(n_tasks, level=level, every=every)
        if max_norm is not None and not max_norm > 0:
            raise InputError(f"max_norm is {max_norm}; give a number > 0, or None for no limit")
        self.max_norm = max_norm

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return where_moving(gram, self._share)

    def _share(self, gram: Tensor) -> Tensor:
        share = fair(gram)
        if self.max_norm is not None:
            share = share * torch.linalg.norm(gram).sqrt()
            share = share * (self.max_norm / (share @ gram @ share).clamp(min=0).sqrt()).clamp(max=1)
        return share
