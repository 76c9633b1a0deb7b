"""ConFIG: the direction that has the same positive cosine with every gradient, as long as their projections add up to.

    U = unit gradients (T, d),   v = U⁺ 1 / ‖U⁺ 1‖,     d = (sum_t g_t · v) v

On the Gram matrix, ``U⁺ 1 = Uᵀ C⁺ 1`` with C the cosines. Free of conflict whenever the gradients are
linearly independent. Single weights may be negative. Tasks whose gradient is 0 get weight 0.

Liu, Chu, Thuerey, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer
from polytask.balance.imtlg import inverse_times
from polytask.balance.solvers import where_moving


class ConFIG(GramBalancer):
    """Weights of the conflict-free direction.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    """

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return where_moving(gram, _conflict_free)


def _conflict_free(gram: Tensor) -> Tensor:
    length = gram.diagonal().sqrt()
    cosines = gram / length[:, None] / length
    share = inverse_times(cosines, torch.ones_like(length))
    onto = cosines @ share
    squared = share @ onto
    return (length @ onto) / squared * share / length if bool(squared > 0) else torch.zeros_like(share)
