"""UW-SO: uncertainty weighting at its optimum, without learned parameters.

    w = T softmax_t( (1 / L_t) / temperature )      or, with temperature None (UW-O),    w_t = 1 / L_t

The optimum of the learned noise is ``σ_t² = L_t``; putting it in gives the inverse losses, and the softmax keeps
a task that is nearly learned from taking everything. Over the tasks present; T is then their number. Losses below 1e-8
count as 1e-8. UW-O does not depend on the losses' units; UW-SO does.

Kirchdorfer et al., Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning, GCPR 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.balance.gls import FLOOR
from polytask.core.errors import InputError


class UWSO(LossBalancer):
    """Weights from the inverse losses.

    Parameters
    ----------
    temperature
        The larger, the closer the weights are to 1; > 0, or None for the inverse losses themselves.
    """

    def __init__(self, *, temperature: float | None = 10.0) -> None:
        super().__init__()
        if temperature is not None and not temperature > 0:
            raise InputError(f"temperature is {temperature}; give a number > 0, or None")
        self.temperature = temperature

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        inverse = 1 / losses.clamp(min=FLOOR)
        if self.temperature is None:
            return inverse
        return present.sum() * torch.softmax((inverse / self.temperature).masked_fill(~present, -torch.inf), 0)
