"""Batches in which every group of rows has the same share.

    a step:    w rows of each of G groups, the same w for all        w = floor(b / G), at least 1
    an epoch:  every row of the largest group once, in ceil(n_max / w) steps whose w differ by one at most

Groups are the values of a column that is carried along (``data.keys``) or the classes of a task; rows without a value
form a group of their own, and rows without any label are in none. An epoch takes n_max rows of every group: a smaller
one starts again, in a new order, so that its rows are seen equally often, but for one time. Where all rows carry the
same labels, the expected loss of a step is ``mean_g mean_{i in g} l_i``.

The order of a group's rows depends on (seed, epoch, its value) and on nothing else.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytask.core.data import Array, Ints, TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.task import Floats
from polytask.train.batches import ALL, Batch, Placed, Share


@dataclass(frozen=True)
class Groups:
    """Which group each row belongs to: ``names`` of the groups, and the number of each row's, ``(n,)``."""

    names: tuple[str, ...]
    of_row: Ints


def groups_of(data: TaskData, name: str) -> Groups:
    """Return the groups that a column of ``data.keys``, or a task with classes, makes of the rows.

    Raises
    ------
    InputError
        No such column or task, or a task without classes.
    """
    if name in data.keys:
        values = [_text(value) for value in np.asarray(data.keys[name]).tolist()]
    elif name in data.names:
        labels = data.task(name).labels
        if not labels:
            raise InputError(
                f'groups is "{name}", a {data.task(name).kind} task; name a task with classes or a column of data.keys'
            )
        values = [""] * data.n_rows
        for row, code in zip(data.labels[name].rows.tolist(), data.labels[name].values.tolist(), strict=True):
            values[row] = str(labels[int(code)])
    else:
        raise InputError(unknown("groups", name, [*data.keys, *(task.name for task in data.tasks if task.labels)]))
    found, numbers = np.unique(np.array(values, dtype=np.str_), return_inverse=True)
    return Groups(tuple(found.tolist()), numbers.astype(np.int64))


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)


class GroupSampler:
    """The batches of every epoch, drawn from a seed; every group has the same number of rows in each.

    Parameters
    ----------
    data
        Placed training data.
    groups
        The group of every row.
    batch_size
        Most rows per step. Small tables get smaller batches, down to 8 rows, so that an epoch has at
        least ``least_steps`` steps; every step has a row of each group.
    seed
        Same seed, same batches.
    least_steps
        See ``batch_size``.

    Raises
    ------
    InputError
        More groups than rows in a batch.
    """

    def __init__(self, data: Placed, groups: Groups, *, batch_size: int, seed: int, least_steps: int = 10) -> None:
        self.data, self.seed = data, seed
        of_row = groups.of_row[data.labelled_rows]
        used = np.unique(of_row).tolist()
        self.names = [groups.names[group] for group in used]
        self.members: list[Array] = [data.labelled_rows[of_row == group] for group in used]
        if len(used) > batch_size:
            raise InputError(
                f"there are {len(used)} groups of rows, but batch_size is {batch_size}; every step has a row of each "
                "group: use a larger batch_size, or groups with fewer values"
            )
        self.longest = max((len(rows) for rows in self.members), default=0)
        size = min(batch_size, max(8, int(np.ceil(len(used) * self.longest / least_steps))))
        width = max(1, size // max(1, len(used)))
        self.steps = int(np.ceil(self.longest / width))
        """Steps of one epoch."""
        self.batch_size = width * len(used)
        self.epoch = -1
        self._order = torch.zeros(len(used), 0, dtype=torch.int64)

    @property
    def fewest(self) -> int:
        """Rows of the smallest batch."""
        return len(self.members) * (self.longest // max(1, self.steps))

    @property
    def labels(self) -> Floats:
        """Labels of each task that an epoch sees on average, ``(T,)``."""
        weights = np.zeros(self.data.n_rows)
        for rows in self.members:
            weights[rows] = self.longest / len(rows)
        each = np.split(weights[self.data.label_rows.cpu().numpy()], self.data.starts[1:-1])
        return np.array([float(some.sum()) for some in each])

    def start(self, epoch: int) -> None:
        """Draw the order of the rows of one epoch."""
        self.epoch = epoch
        order = np.zeros((len(self.members), self.longest), dtype=np.int64)
        for number, (name, rows) in enumerate(zip(self.names, self.members, strict=True)):
            rng = np.random.default_rng([self.seed, epoch, zlib.crc32(name.encode())])
            rounds = [rng.permutation(rows) for _ in range(-(-self.longest // len(rows)))]
            order[number] = np.concatenate(rounds)[: self.longest]
        self._order = torch.from_numpy(order).to(self.data.device)

    def batch(self, step: int, share: Share = ALL) -> Batch:
        """Return (a part of) the batch of one step, group by group, with the labels its rows carry of any task."""
        first, stop = (self.longest * place // self.steps for place in (step, step + 1))
        rows: Tensor = self._order[:, first:stop].reshape(-1)
        return self.data.row_batch(rows[share.rows])
