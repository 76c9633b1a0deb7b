"""Rows of tasks: picking tasks along the leading axis, and joining the rows of several into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Input = Mapping[str, Tensor] | Tensor


def taken(x: Tensor, places: Sequence[int]) -> Tensor:
    """Return ``x[places]``, or ``x`` itself where that is all of it in order."""
    if list(places) == list(range(len(x))):
        return x
    return x.index_select(0, torch.tensor(places, device=x.device))


def joined(x: Tensor, tasks: Sequence[int], shape: tuple[int, int]) -> Tensor:
    """Return the rows of n · m tasks as n batches, ``(n, m·B, …)`` from ``(T, B, …)``; ``shape`` is (n, m)."""
    return taken(x, tasks).reshape(shape[0], shape[1] * x.shape[1], *x.shape[2:])


def all_joined(x: Input, tasks: Sequence[int], shape: tuple[int, int]) -> Input:
    """Return the same of every input in a mapping."""
    if isinstance(x, Tensor):
        return joined(x, tasks, shape)
    return {name: joined(tensor, tasks, shape) for name, tensor in x.items()}


def parted(y: Tensor, n_tasks: int, n_rows: int) -> Tensor:
    """Return the outputs of joined rows per task again: ``(T, B, …)`` from ``(n, m·B, …)``."""
    return y.reshape(n_tasks, n_rows, *y.shape[2:])
