"""The batches of an epoch that goes through groups of tasks one after the other.

Group by group, in an order that is given, every row with a label of one of the group's tasks is seen once:

    rows of the first group in batches, rows of the second group in batches, …

The order of a group's rows depends on (seed, epoch, the names of its tasks) and on nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.core.data import Ints
from polytask.train.batches import ALL, Batch, Placed, Share


class TaskSampler:
    """The batches of every epoch, drawn from a seed; one group of tasks per batch.

    Parameters
    ----------
    data
        Placed training data.
    order
        Numbers of the tasks of each group, in the order of an epoch; groups without labels are passed over.
    batch_size
        Most rows per step. Small tables get smaller batches, down to 8 rows, so that an epoch has at
        least ``least_steps`` steps.
    seed
        Same seed, same batches.
    least_steps
        See ``batch_size``.
    """

    def __init__(
        self, data: Placed, order: Sequence[Sequence[int]], *, batch_size: int, seed: int, least_steps: int = 10
    ) -> None:
        self.data, self.seed = data, seed
        self.order = [list(tasks) for tasks in order if data.sizes[list(tasks)].any()]
        self.labelled = [torch.unique(torch.cat([self._rows_of(task) for task in tasks])) for tasks in self.order]
        counts = [len(rows) for rows in self.labelled]
        self.batch_size = min(batch_size, max(8, int(np.ceil(sum(counts) / least_steps))))
        self.starts = np.cumsum([0, *(int(np.ceil(count / self.batch_size)) for count in counts)]).tolist()
        """First step of each group, and the number of steps of an epoch."""
        self.steps = int(self.starts[-1])
        self.epoch = -1
        self._rows: list[Tensor] = []

    def _rows_of(self, task: int) -> Tensor:
        return self.data.label_rows[int(self.data.starts[task]) : int(self.data.starts[task + 1])]

    def start(self, epoch: int) -> None:
        """Draw the order of the rows of one epoch."""
        self.epoch = epoch
        self._rows = []
        for tasks, rows in zip(self.order, self.labelled, strict=True):
            names = "\n".join(self.data.names[task] for task in tasks)
            rng = np.random.default_rng([self.seed, epoch, zlib.crc32(names.encode())])
            self._rows.append(rows[torch.from_numpy(rng.permutation(len(rows))).to(rows.device)])

    def tasks(self, step: int) -> tuple[list[int], bool]:
        """Return the numbers of the tasks of one step, and whether the step is their first."""
        place = self._place(step)
        return self.order[place], step == self.starts[place]

    @property
    def fewest(self) -> int:
        """Rows of the smallest batch."""
        steps = np.diff(self.starts)
        return int(min((len(rows) // step for rows, step in zip(self.labelled, steps, strict=True)), default=0))

    @property
    def labels(self) -> Ints:
        """Labels of each task that an epoch sees, ``(T,)``."""
        return self.data.sizes

    def batch(self, step: int, share: Share = ALL) -> Batch:
        """Return (a part of) the batch of one step: rows of one group, with the labels they carry of any task."""
        place = self._place(step)
        first, stop = self.starts[place], self.starts[place + 1]
        rows, steps, number = self._rows[place], stop - first, step - first
        rows = rows[len(rows) * number // steps : len(rows) * (number + 1) // steps]
        return self.data.row_batch(rows[share.rows])

    def _place(self, step: int) -> int:
        return int(np.searchsorted(self.starts, step, side="right")) - 1
