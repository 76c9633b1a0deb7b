"""Tasks whose loss stops being finite: they are left out of that step, counted and told; the others go on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytask.train.batches import Batch

_FEW_ROWS = 5


@dataclass(frozen=True)
class NonFiniteLoss:
    """The loss of a task that is not finite in some step.

    Attributes
    ----------
    task
        The task's name.
    value
        The loss.
    where
        Step, epoch and rows, in words.
    rows, n_rows
        The first few training rows of the task in that step, and how many there were.
    new
        Whether it is the task's first one.
    """

    task: str
    value: float
    where: str
    rows: list[int]
    n_rows: int
    new: bool


class LeftOut:
    """Counts, by task, the steps that went on without it.

    Parameters
    ----------
    names
        The tasks.
    device
        Where counts are kept.

    Attributes
    ----------
    counts
        Steps without each task, int64 ``(T,)``.
    first
        Task → where its loss was not finite for the first time.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self.counts = torch.zeros(len(self.names), dtype=torch.int64, device=device)
        self.first: dict[str, str] = {}
        self._in_this_step: set[int] = set()

    def begin_step(self) -> None:
        """Forget which tasks were met in the step before."""
        self._in_this_step.clear()

    def meet(self, losses: Tensor, batch: Batch, place: str) -> Iterator[NonFiniteLoss]:
        """Count the tasks whose loss ``(T,)`` is not finite, once a step, and yield them.

        Parameters
        ----------
        losses
            The losses.
        batch
            The whole batch, of all parts and processes.
        place
            The step, in words.
        """
        for task in torch.nonzero(~losses.isfinite()).flatten().tolist():
            if task in self._in_this_step:
                continue
            self._in_this_step.add(task)
            self.counts[task] += 1
            name = self.names[task]
            found = (batch.rows[task] if batch.rows.ndim == 2 else batch.rows)[batch.present[task]]
            rows = np.unique(found.cpu().numpy()).tolist()
            few = ", ".join(map(str, rows[:_FEW_ROWS])) + (", …" if len(rows) > _FEW_ROWS else "")
            where = f"{place}, with training rows {few} ({len(rows)} in all)"
            new = name not in self.first
            self.first.setdefault(name, where)
            yield NonFiniteLoss(name, losses[task].item(), where, rows[:_FEW_ROWS], len(rows), new)

    def by_task(self) -> dict[str, int]:
        """Return task → steps without it, of the tasks that have some."""
        return {name: count for name, count in zip(self.names, self.counts.tolist(), strict=True) if count}

    def warn(self, n_steps: int) -> None:
        """Warn once for every task that was left out of some of ``n_steps``."""
        for name, count in self.by_task().items():
            warnings.warn(
                f'the loss of task "{name}" was not finite in {count} of {n_steps} steps, which went on without it, '
                f"first in {self.first[name]}; look for extreme values in its targets, or lower learning_rate",
                stacklevel=4,
            )
