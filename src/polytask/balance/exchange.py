"""What a balancer is told where a batch is spread over processes, or gradients are scaled.

    L_t = sum_r L_rt        g_t = sum_r g_rt        r: the processes, each with a part of the batch

The loss that process r hands over is its part of the joint mean: its own mean times its share of the task's labels.
Losses are summed before weights are made of them, and so are gradients before they are compared (or, where the
parts are different rows of one tensor, their Gram matrices, which is the same). Every process then
writes the gradients of its own part, weighted as all others are: the sum over processes is the update of the joint
batch. Summing ``.grad`` is left to the training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Exchange:
    """How parts of a batch are added up.

    Parameters
    ----------
    sum
        Returns the sum over processes of a tensor of which each process holds its own part, as a new tensor.
    grams
        Sum the Gram matrices of the processes instead of the gradients that they are made of. At the shared
        representation this changes nothing; for parameters it is cheaper and approximate: it leaves out
        the products of one process's gradients with another's.
    scale
        What the gradients are multiplied by (not the losses), to keep them within the range of half precision.
    """

    sum: Callable[[Tensor], Tensor]
    grams: bool = False
    scale: float = 1.0
