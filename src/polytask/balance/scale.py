"""Scale normalisation: every loss is divided by what it usually is.

    w_t = 1 / m_t,      m_t <- L_t at first;   then  m_t <- (1 - β) m_t + β L_t

With β = 0 each loss is divided by its first value and stays so: a change of units and no more. With
β > 0 the weight follows the loss, as uncertainty weighting does without learning anything. The update does not depend
on the losses' units. A loss below 1e-8 counts as 1e-8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.balance.gls import FLOOR
from polytask.core.errors import InputError


class ScaleNormalisation(LossBalancer):
    """Inverse running means of the losses.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    beta
        How fast the mean follows, in [0, 1].

    Attributes
    ----------
    means
        m, shape ``(T,)``.
    """

    means: Tensor
    started: Tensor

    def __init__(self, n_tasks: int, *, beta: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise InputError(f"beta is {beta}; give a number in [0, 1]")
        self.beta = beta
        self.register_buffer("means", torch.ones(n_tasks, dtype=torch.float64))
        self.register_buffer("started", torch.zeros(n_tasks, dtype=torch.bool))

    @torch.no_grad()
    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        now = losses.to(self.means).clamp(min=FLOOR)
        moved = torch.where(self.started, (1 - self.beta) * self.means + self.beta * now, now)
        self.means.copy_(torch.where(present, moved, self.means))
        self.started |= present
        return (1 / self.means).to(losses)
