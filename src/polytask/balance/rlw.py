"""RLW: random weights, drawn anew in every step; the control that any weighting should beat.

    w = T softmax(x),   x_t ~ N(0, 1)            mean weight 1

Absent tasks take no part in the softmax. The losses play no role, nor do their units.

Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.balance.draws import generator


class RLW(LossBalancer):
    """Random weights.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    seed
        Seed of the draws.
    """

    drawn: Tensor

    def __init__(self, n_tasks: int, *, seed: int = 0) -> None:
        super().__init__()
        self.n_tasks, self.seed = n_tasks, seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        draws = torch.randn(self.n_tasks, generator=generator(self.seed, int(self.drawn))).to(losses)
        self.drawn += 1
        return present.sum() * torch.softmax(draws.masked_fill_(~present, -torch.inf), 0)
