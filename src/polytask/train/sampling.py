"""Which task a step trains, where steps train one task each.

    proportional   p_t ∝ n_t
    temperature    p_t ∝ n_t^(1/τ)
    annealed       p_t ∝ n_t^(1 - 0.8 e / (E - 1)) in epoch e = 0 … E - 1: from proportional almost to uniform
    uniform        p_t ∝ 1

n_t: labels of task t; a task without any is never drawn. A step draws a task and takes the next rows of its own, in an
order drawn anew every epoch; a task whose rows are used up starts again, so small tasks are seen more often than
large ones where they are drawn more often than their share. An epoch is ``ceil(m / b)`` steps of b rows, m labels in
all: as many rows as there are labels. The expected gradient of a step is ``sum_t p_t g_t``.

The other ways: row batches ("rows") and one batch per task in each step ("round") are in
:mod:`polytask.train.batches`; row batches with equal shares of groups ("balanced") are in :mod:`polytask.train.groups`;
every row of one task or level after the other ("sequential") is in :mod:`polytask.train.sequence`.

Annealed: Stickland and Murray, BERT and PALs, ICML 2019.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.train.batches import ALL, Batch, Placed, Sampler, Share
from polytask.train.groups import Groups, GroupSampler
from polytask.train.sequence import TaskSampler
from polytask.train.settings import TrainSettings

DRAWN = ("proportional", "temperature", "annealed", "uniform")
"""Samplings in which each step trains one task, drawn."""
_ANNEALED = 0.8


def task_probabilities(sizes: Floats | Ints, sampling: str, *, temperature: float, epoch: int, epochs: int) -> Floats:
    """Return how likely each task is drawn, ``(T,)``, from its number of labels ``(T,)``."""
    done = epoch / (epochs - 1) if epochs > 1 else 0.0
    power = {"proportional": 1.0, "temperature": 1 / temperature, "annealed": 1 - _ANNEALED * done, "uniform": 0.0}
    weights = np.where(sizes > 0, np.maximum(sizes, 1.0) ** power[sampling], 0.0)
    return np.asarray(weights / weights.sum())


class DrawnTasks:
    """The batches of every epoch, one task each, drawn from a seed.

    Parameters
    ----------
    data
        Placed training data.
    sampling
        One of :data:`DRAWN`.
    batch_size
        Most rows per step. Small tables get smaller batches, down to 8 rows, so that an epoch has at
        least ``least_steps`` steps; a task with fewer rows gives all it has.
    seed
        Same seed, same batches.
    least_steps
        See ``batch_size``.
    temperature, epochs
        τ and E.
    """

    def __init__(
        self,
        data: Placed,
        sampling: str,
        *,
        batch_size: int,
        seed: int,
        least_steps: int = 10,
        temperature: float = 2.0,
        epochs: int = 1,
    ) -> None:
        self.data, self.sampling, self.seed = data, sampling, seed
        self.temperature, self.epochs = temperature, epochs
        count = int(data.sizes.sum())
        self.batch_size = min(batch_size, max(8, int(np.ceil(count / least_steps))))
        self.steps = int(np.ceil(count / self.batch_size))
        """Steps of one epoch."""
        self.epoch = -1
        self._drawn = np.zeros(0, dtype=np.int64)
        self._rows: list[Tensor] = []

    @property
    def fewest(self) -> int:
        """Rows of the smallest batch."""
        sizes = self.data.sizes[self.data.sizes > 0]
        return min(self.batch_size, int(sizes.min(initial=self.batch_size)))

    @property
    def labels(self) -> Ints:
        """Labels of each task that stand for an epoch, ``(T,)``: all it has, however often it is drawn."""
        return self.data.sizes

    def start(self, epoch: int) -> None:
        """Draw the tasks of the steps of one epoch, and the rows of each."""
        self.epoch = epoch
        chances = task_probabilities(
            self.data.sizes, self.sampling, temperature=self.temperature, epoch=epoch, epochs=self.epochs
        )
        self._drawn = np.random.default_rng([self.seed, epoch]).choice(len(chances), size=self.steps, p=chances)
        self._rows = [torch.zeros(0, dtype=torch.int64)] * self.steps
        for task in np.unique(self._drawn).tolist():
            size, steps = int(self.data.sizes[task]), np.flatnonzero(self._drawn == task)
            width = min(self.batch_size, size)
            rng = np.random.default_rng([self.seed, epoch, zlib.crc32(self.data.names[task].encode())])
            rounds = [rng.permutation(size) for _ in range(-(-width * len(steps) // size))]
            order = np.concatenate(rounds) + self.data.starts[task]
            for place, step in enumerate(steps.tolist()):
                labels = torch.from_numpy(order[place * width : (place + 1) * width]).to(self.data.device)
                self._rows[step] = self.data.label_rows[labels]

    def tasks(self, step: int) -> tuple[list[int], bool]:
        """Return the number of the task of one step; it is never the first of a turn."""
        return [int(self._drawn[step])], False

    def batch(self, step: int, share: Share = ALL) -> Batch:
        """Return (a part of) the batch of one step: rows of one task, with the labels they carry of any."""
        return self.data.row_batch(self._rows[step][share.rows])


def make_sampler(
    data: Placed,
    settings: TrainSettings,
    order: Sequence[Sequence[int]] | None,
    *,
    own_rows: bool,
    seed: int,
    groups: Groups | None = None,
) -> Sampler | GroupSampler | TaskSampler | DrawnTasks:
    """Return the sampler of a fit.

    Parameters
    ----------
    data
        Placed training data.
    settings
        How to draw.
    order
        Groups of tasks that the network takes one after the other, or None.
    own_rows
        Whether each task draws its own batches, where the sampling is not given.
    seed
        Same seed, same batches.
    groups
        The group of every row, where groups have equal shares.

    Raises
    ------
    InputError
        A sampling that the network's order of tasks leaves no room for; more groups than rows in a batch.
    """
    drawing = {"batch_size": settings.batch_size, "seed": seed, "least_steps": settings.least_steps}
    if order is not None and settings.sampling not in (None, "sequential"):
        raise InputError(
            f'sampling is "{settings.sampling}", but this network takes its tasks in turn; use sampling="sequential" '
            "or None"
        )
    if settings.sampling == "sequential" or order is not None:
        return TaskSampler(data, order or [[task] for task in range(data.n_tasks)], **drawing)
    if settings.sampling in DRAWN:
        return DrawnTasks(
            data, settings.sampling, **drawing, temperature=settings.temperature, epochs=settings.max_epochs
        )
    if groups is not None:
        return GroupSampler(data, groups, **drawing)
    return Sampler(data, own_rows=own_rows, **drawing)
