"""FairGrad: α-fair sharing of the progress among the tasks.

    A w = w^(-1/α), w > 0:      (d · g_t)^(-α) = w_t

Maximises ``sum_t (d · g_t)^(1-α) / (1 - α)`` over a ball. α = 1 is Nash-MTL without its limit on the length; α -> 0
comes near linear scalarisation, α -> ∞ near max-min fairness. Solved by Newton's method. Tasks whose
gradient is 0 get weight 0.

Ban and Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024.
"""

from __future__ import annotations

from torch import Tensor

from polytask.balance.base import GramBalancer, Level
from polytask.balance.solvers import fair, where_moving
from polytask.core.errors import InputError


class FairGrad(GramBalancer):
    """Weights of the α-fair direction.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    alpha
        How much the slowest tasks count, in [0.1, 10].
    """

    def __init__(self, n_tasks: int, *, level: Level = "exact", every: int = 1, alpha: float = 1.0) -> None:
        super().__init__(n_tasks, level=level, every=every)
        if not 0.1 <= alpha <= 10:
            raise InputError(f"alpha is {alpha}; give a number in [0.1, 10]")
        self.alpha = alpha

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return where_moving(gram, lambda part: fair(part, self.alpha))
