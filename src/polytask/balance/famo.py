"""FAMO: all losses fall at the same rate, judged from losses alone.

    z = softmax(ξ),  D_t = L_t - b_t + 1e-8:     step on  c sum_t z_t log D_t,    c = 1 / sum_t (z_t / D_t)
    after the step:   ξ <- Adam(ξ, gradient  J_softmaxᵀ (log D_before - log D_after) + γ ξ)

so that tasks that improved less get more weight. The weights ``w_t = c z_t / D_t`` sum to 1. The losses after the step
come from :meth:`FAMO.after_step`, one more forward pass on the same batch. Losses must stay above their bounds b;
what falls below 1e-8 counts as 1e-8. ξ moves with its own Adam, whose moments are part of the state.

Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.balance.features import Losses
from polytask.core.errors import InputError

_FLOOR = 1e-8
_BETAS = (0.9, 0.999)


class FAMO(LossBalancer):
    """Weights that make the logarithms of all losses fall alike.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    learning_rate
        Of ξ.
    decay
        γ, pulls the weights back to equality.
    bounds
        b, the least value of each loss; default 0.

    Attributes
    ----------
    logits
        ξ, shape ``(T,)``; not for the network's optimiser.
    """

    needs_second_look: ClassVar[bool] = True

    logits: Tensor
    moments: Tensor
    steps: Tensor
    bounds: Tensor
    before: Tensor
    seen: Tensor

    def __init__(
        self,
        n_tasks: int,
        *,
        learning_rate: float = 0.025,
        decay: float = 0.001,
        bounds: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not learning_rate >= 0 or not decay >= 0:
            raise InputError(f"learning_rate is {learning_rate} and decay {decay}; both must be >= 0")
        least = [0.0] * n_tasks if bounds is None else list(bounds)
        if len(least) != n_tasks:
            raise InputError(f"bounds has {len(least)} entries for {n_tasks} tasks")
        self.learning_rate, self.decay = learning_rate, decay
        self.register_buffer("logits", torch.zeros(n_tasks, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(2, n_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bounds", torch.tensor(least, dtype=torch.float64), persistent=False)
        self.register_buffer("before", torch.zeros(n_tasks, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(n_tasks, dtype=torch.bool))

    def _shares(self, present: Tensor) -> Tensor:
        return torch.softmax(self.logits.masked_fill(~present, -torch.inf), 0)

    def _above(self, losses: Tensor) -> Tensor:
        return (losses.to(self.bounds) - self.bounds).clamp(min=0) + _FLOOR

    @torch.no_grad()
    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        above = self._above(losses)
        self.before.copy_(above.log())
        self.seen.copy_(present)
        if not bool(present.any()):
            return torch.zeros_like(losses)
        share = self._shares(present) / above
        return (share / share.sum()).to(losses)

    @torch.no_grad()
    def after_step(self, losses: Losses, *, present: Tensor | None = None) -> None:
        """Learn from the losses ``(T,)`` of the same batch after the step."""
        values = losses.detach() if isinstance(losses, Tensor) else torch.stack([each.detach() for each in losses])
        seen = self.seen if present is None else self.seen & present
        if not bool(seen.any()):
            return
        z = self._shares(seen)
        fell = torch.where(seen, self.before - self._above(values).log(), 0.0)
        slope = z * (fell - z @ fell) + self.decay * self.logits
        self.steps += 1
        first, second = self.moments
        first.lerp_(slope, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).add_((1 - _BETAS[1]) * slope**2)
        n = int(self.steps)
        size = self.learning_rate / (1 - _BETAS[0] ** n)
        self.logits -= size * first / ((second / (1 - _BETAS[1] ** n)).sqrt() + 1e-8)
