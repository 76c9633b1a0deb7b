"""IMTL-L: a learned factor per task brings all weighted losses to 1.

    sum_t ( e^{s_t} L_t - s_t ),       optimum  e^{s_t} = 1 / L_t

Uncertainty weighting for Gaussian noise times two, with the sign of s turned. s is kept in [-10, 10].
At the optimum the update does not depend on the losses' units.

Liu et al., Towards Impartial Multi-task Learning, ICLR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytask.balance.base import LossBalancer

_LIMIT = 10.0


class IMTLL(LossBalancer):
    """Learned factors.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.

    Attributes
    ----------
    log_factors
        s, shape ``(T,)``; the optimiser must be given them, without weight decay.
    """

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.log_factors = nn.Parameter(torch.zeros(n_tasks))

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        with torch.no_grad():
            self.log_factors.clamp_(-_LIMIT, _LIMIT)
        return torch.exp(self.log_factors)

    def regulariser(self, present: Tensor) -> Tensor:
        return -self.log_factors.masked_fill(~present, 0.0).sum()
