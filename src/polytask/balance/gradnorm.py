"""GradNorm: weights are trained so that all tasks learn at similar rates.

    G_t = w_t ‖g_t‖,    r_t = (L_t / L_t(0)) / mean_s,      loss of w:  sum_t |G_t - sg[mean_s G_s · r_t^α]|

Only w gets the gradient of that loss, ``sign(G_t - target_t) ‖g_t‖``; the network gets the gradient of
``sum_t w_t L_t``, private parameters included. After each step w is brought back to a sum of T (of the tasks present:
to their number). ``L_t(0)`` is the first loss that the task shows. Gradients are compared where ``level`` says; for the
paper's last shared layer hand over that layer's parameters as ``shared`` and the others as ``private``.

Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks, ICML 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.balance.base import GramBalancer, Level
from polytask.core.errors import InputError

_LEAST = 1e-4


class GradNorm(GramBalancer):
    """Learned weights that equalise the lengths of weighted gradients.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    alpha
        How strongly slow tasks are pulled forward, >= 0; 0 makes all lengths equal.

    Attributes
    ----------
    raw
        The weights as the optimiser left them, ``(T,)``; the optimiser must be given them.
    """

    first: Tensor
    started: Tensor

    def __init__(self, n_tasks: int, *, level: Level = "exact", every: int = 1, alpha: float = 1.5) -> None:
        super().__init__(n_tasks, level=level, every=every)
        if not alpha >= 0:
            raise InputError(f"alpha is {alpha}; give a number >= 0")
        self.alpha = alpha
        self.raw = nn.Parameter(torch.ones(n_tasks))
        self.register_buffer("first", torch.ones(n_tasks, dtype=torch.float64))
        self.register_buffer("started", torch.zeros(n_tasks, dtype=torch.bool))

    @torch.no_grad()
    def head_weights(self, losses: Tensor, present: Tensor) -> Tensor:
        new = present & ~self.started
        self.first.copy_(torch.where(new, losses.to(self.first), self.first))
        self.started |= new
        self.raw.clamp_(min=_LEAST)
        self.raw.mul_(self.n_tasks / self.raw.sum())
        return self.raw * (present.sum() / self.raw[present].sum())

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of all T tasks and leave the gradient of GradNorm's loss in ``raw.grad``."""
        return self.task_weights(gram, losses, range(self.n_tasks))

    def task_weights(self, gram: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:
        index = torch.as_tensor(tasks, device=self.raw.device)
        raw = self.raw.detach()[index].to("cpu", torch.float64)
        weights = raw * len(tasks) / raw.sum()
        length = gram.diagonal().sqrt()
        weighted = weights * length
        first = self.first[index].cpu()
        rates = (losses / torch.where(first > 0, first, 1.0)).clamp(min=0)
        mean_rate = rates.mean()
        rates = rates / mean_rate if mean_rate > 0 else torch.ones_like(rates)
        slope = torch.sign(weighted - weighted.mean() * rates**self.alpha) * length
        self.raw.grad = torch.zeros_like(self.raw)
        self.raw.grad[index] = slope.to(self.raw)
        return weights
