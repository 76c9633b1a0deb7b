"""Equal weights: the plain sum, or mean, of the task losses; the control of every balancing method.

    sum:   w_t = 1              mean:   w_t = 1 / T

With "sum" every task's private parameters get the gradient they would get alone, and shared ones the
sum over tasks: under plain SGD their step is about T times that of a single task. "mean" divides by the
number of all tasks, present or not, so an absent task does not change the others.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from polytask.balance.base import LossBalancer
from polytask.core.errors import InputError, unknown


class Equal(LossBalancer):
    """The same weight for every task.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    reduction
        ``"sum"`` (weight 1) or ``"mean"`` (weight 1 / T).
    """

    constant: ClassVar[bool] = True

    def __init__(self, n_tasks: int, *, reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        if n_tasks < 1:
            raise InputError(f"n_tasks is {n_tasks}; there must be at least one task")
        if reduction not in ("sum", "mean"):
            raise InputError(unknown("reduction", reduction, ("sum", "mean")))
        self.n_tasks, self.reduction = n_tasks, reduction

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return torch.full_like(losses, 1.0 if self.reduction == "sum" else 1.0 / self.n_tasks)
