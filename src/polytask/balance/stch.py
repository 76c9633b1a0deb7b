"""STCH: the largest weighted loss, made smooth.

    μ log sum_t exp(λ_t f_t / μ):       between max_t λ_t f_t and that plus μ log T

``f_t = L_t - z_t`` with z_t the best value the loss could have. With ``relative`` it is
``f_t = log(L_t / L̄_t)`` instead, L̄_t the task's mean loss over the first ``warm_up`` steps (while all weights
are 1), so that units do not matter, as in the authors' multi-task experiments; the value is then multiplied by T.

Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.balance.gls import FLOOR
from polytask.core.errors import InputError


class STCH(LossBalancer):
    """Weights that follow the worst task: ``λ_t softmax_t(λ_t f_t / μ)``.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    mu
        How smooth, > 0; the smaller, the more the largest loss counts alone.
    preferences
        λ, T numbers > 0; default 1 / T each (1 each with ``relative``).
    reference
        z, T numbers; default 0. Not used with ``relative``.
    relative
        Compare logarithms of losses relative to their early mean.
    warm_up
        Steps over which that mean is taken.
    """

    preferences: Tensor
    reference: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        n_tasks: int,
        *,
        mu: float = 1.0,
        preferences: Sequence[float] | None = None,
        reference: Sequence[float] | None = None,
        relative: bool = False,
        warm_up: int = 100,
    ) -> None:
        super().__init__()
        if not mu > 0:
            raise InputError(f"mu is {mu}; give a number > 0")
        chosen = [1.0 if relative else 1 / n_tasks] * n_tasks if preferences is None else list(preferences)
        best = [0.0] * n_tasks if reference is None else list(reference)
        if len(chosen) != n_tasks or len(best) != n_tasks or min(chosen) <= 0:
            raise InputError(f"preferences and reference need {n_tasks} numbers each, preferences > 0")
        if relative and warm_up < 1:
            raise InputError(f"warm_up is {warm_up}; relative losses need at least 1 step")
        self.n_tasks, self.mu, self.relative, self.warm_up = n_tasks, mu, relative, warm_up
        self.register_buffer("preferences", torch.tensor(chosen, dtype=torch.float64), persistent=False)
        self.register_buffer("reference", torch.tensor(best, dtype=torch.float64), persistent=False)
        self.register_buffer("sums", torch.zeros(n_tasks, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(n_tasks, dtype=torch.int64))

    @torch.no_grad()
    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        preferences = self.preferences.to(losses)
        if not self.relative:
            scores = preferences * (losses - self.reference.to(losses))
            return preferences * torch.softmax((scores / self.mu).masked_fill(~present, -torch.inf), 0)
        warming = self.counts < self.warm_up
        early = warming & present
        self.sums += torch.where(early, losses, 0.0).to(self.sums)
        self.counts += early
        if bool(early.any()):
            return torch.ones_like(losses)
        losses = losses.clamp(min=FLOOR)
        mean = (self.sums / self.counts.clamp(min=1)).clamp(min=FLOOR).to(losses)
        scores = (preferences * (losses / mean).log() / self.mu).masked_fill(~present, -torch.inf)
        return present.sum() * preferences * torch.softmax(scores, 0) / losses
