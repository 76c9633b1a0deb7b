"""The batches of an epoch that goes through the tasks one after the other.

Task by task, in an order that is given, every labelled row of the task is seen once:

    rows of the first task in batches, rows of the second task in batches, …

The order of a task's rows depends on (seed, epoch, the task's name) and on nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.train.batches import Batch, Placed


class TaskSampler:
    """The batches of every epoch, drawn from a seed; one task per batch.

    Parameters
    ----------
    data
        Placed training data.
    order
        Numbers of the tasks, in the order of an epoch; those without labels are passed over.
    batch_size
        Most rows per step. Tasks with few rows get smaller batches, down to 8 rows, so that an epoch has at
        least ``least_steps`` steps.
    seed
        Same seed, same batches.
    least_steps
        See ``batch_size``.
    """

    def __init__(
        self, data: Placed, order: Sequence[int], *, batch_size: int, seed: int, least_steps: int = 10
    ) -> None:
        self.data, self.seed = data, seed
        self.order = [task for task in order if data.sizes[task]]
        count = int(data.sizes[self.order].sum())
        self.batch_size = min(batch_size, max(8, int(np.ceil(count / least_steps))))
        counts = [int(np.ceil(data.sizes[task] / self.batch_size)) for task in self.order]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        """First step of each task, and the number of steps of an epoch."""
        self.steps = int(self.starts[-1])
        self.epoch = -1
        self._rows: list[Tensor] = []

    def start(self, epoch: int) -> None:
        """Draw the order of the rows of one epoch."""
        self.epoch = epoch
        self._rows = []
        for task in self.order:
            first, size = int(self.data.starts[task]), int(self.data.sizes[task])
            rng = np.random.default_rng([self.seed, epoch, zlib.crc32(self.data.names[task].encode())])
            drawn = torch.from_numpy(rng.permutation(size) + first).to(self.data.device)
            self._rows.append(self.data.label_rows[drawn])

    def task(self, step: int) -> tuple[int, bool]:
        """Return the number of the task of one step, and whether the step is its first."""
        place = int(np.searchsorted(self.starts, step, side="right")) - 1
        return self.order[place], step == self.starts[place]

    def batch(self, step: int) -> Batch:
        """Return the batch of one step: rows of one task, with the labels they carry of any task."""
        place = int(np.searchsorted(self.starts, step, side="right")) - 1
        first, stop = self.starts[place], self.starts[place + 1]
        rows, steps, number = self._rows[place], stop - first, step - first
        return self.data.row_batch(rows[len(rows) * number // steps : len(rows) * (number + 1) // steps])
