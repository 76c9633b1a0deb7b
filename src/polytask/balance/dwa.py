"""DWA: tasks whose loss fell less during the last epochs get more weight.

    w_t = T softmax_t( (L_t(e - 1) / L_t(e - 2)) / temperature ),     1 during the first two epochs

``L_t(e)`` is the mean of the task's losses over epoch e, closed by :meth:`DWA.end_epoch`. A task without a loss in one
of the two epochs counts as unchanged. Weights are not affected by the losses' units.

Liu, Johns, Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.core.errors import InputError


class DWA(LossBalancer):
    """Weights from the rates at which the losses fall.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    temperature
        The larger, the closer the weights are to 1; > 0.
    """

    sums: Tensor
    counts: Tensor
    means: Tensor
    current: Tensor

    def __init__(self, n_tasks: int, *, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}; give a number > 0")
        self.n_tasks, self.temperature = n_tasks, temperature
        self.register_buffer("sums", torch.zeros(n_tasks, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(n_tasks, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(2, n_tasks, dtype=torch.float64))
        self.register_buffer("current", torch.ones(n_tasks, dtype=torch.float64))

    @torch.no_grad()
    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        self.sums += losses.to(self.sums)
        self.counts += present
        return self.current.to(losses)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Close the epoch: its mean losses become the newer of the two that the weights are made of."""
        mean = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1), 0.0)
        self.means.copy_(torch.stack([self.means[1], mean]))
        known = (self.means > 0).all(0)
        rates = torch.where(known, self.means[1] / torch.where(known, self.means[0], 1.0), 1.0)
        self.current.copy_(self.n_tasks * torch.softmax(rates / self.temperature, 0))
        self.sums.zero_()
        self.counts.zero_()
