"""Fixed weights: ``sum_t w_t L_t`` with weights chosen by hand or by a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.core.errors import InputError


class Fixed(LossBalancer):
    """Weights that stay as given.

    Parameters
    ----------
    weights
        One finite weight of at least 0 per task; not all 0.
    """

    constant: ClassVar[bool] = True
    fixed: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise InputError(f"weights is {list(weights)}; give one finite weight >= 0 per task, not all 0")
        self.register_buffer("fixed", torch.tensor([float(w) for w in weights], dtype=torch.float64))

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return self.fixed.to(losses)
