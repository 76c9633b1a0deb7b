"""Rows of tasks: picking tasks along the leading axis, and joining the rows of several into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Input = Mapping[str, Tensor] | Tensor


def taken(x: Tensor, places: Sequence[int]) -> Tensor:
    """Return ``x[places]``, or ``x`` itself where that is all of it in order."""
    if list(places) == list(range(len(x))):
        return x
    return x.index_select(0, torch.tensor(places, dtype=torch.int64, device=x.device))


def selection(numbers: Sequence[int], n: int, device: torch.device) -> Tensor | None:
    """Return the numbers as an index among n, or None where that is all of them in order."""
    return None if list(numbers) == list(range(n)) else torch.tensor(numbers, dtype=torch.int64, device=device)


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


def in_order(parts: Sequence[tuple[Sequence[int], Tensor]], width: int) -> Tensor:
    """Return scores of groups of tasks as one ``(T', B, width)`` in the order of their places, padded with zeros.

    ``parts`` has the places of a group's tasks and their scores ``(m, B, K)``.
    """
    padded = [functional.pad(scores, (0, width - scores.shape[-1])) for places, scores in parts if places]
    order = np.argsort([place for places, _ in parts for place in places]).tolist()
    return taken(padded[0] if len(padded) == 1 else torch.cat(padded), order)
