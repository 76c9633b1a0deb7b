"""What a network did lately, per task: the mean over batches that gates and masks report.

    m_t ← m_t + max(1/100, 1/n_t) (v_t - m_t)        n_t: number of batches seen for task t

A plain mean of the first hundred training batches, an exponential one from then on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BATCHES = 100


class RunningMean(nn.Module):
    """The running mean of one vector per task; part of the state, not trained.

    Calls outside training, or without gradients (a second look at a batch), change nothing.

    Parameters
    ----------
    n_tasks, size
        Shape of the mean.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, n_tasks: int, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_tasks, size))
        self.register_buffer("seen", torch.zeros(n_tasks, 1, dtype=torch.int64))

    def forward(self, values: Tensor, only: Tensor | None = None) -> None:
        """Take in the values ``(T, size)`` of one batch, or those of the tasks ``only``."""
        if not (self.training and torch.is_grad_enabled()):
            return
        with torch.no_grad():
            values = values.detach().to(self.mean)
            if only is None:
                self.seen += 1
                self.mean.lerp_(values, self._share(self.seen))
            else:
                self.seen[only] += 1
                self.mean[only] = self.mean[only].lerp(values, self._share(self.seen[only]))

    def _share(self, seen: Tensor) -> Tensor:
        return seen.to(self.mean).reciprocal().clamp(min=1 / _BATCHES)
