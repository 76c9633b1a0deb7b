"""Early stopping: which epoch was best, and who has stopped.

The validation loss of each task is divided by that of the best constant of its training labels. Either all tasks are
judged by the mean of that over tasks, or each by its own, where they are models that happen to be computed together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.core.data import TaskData
from polytask.core.scaling import TargetScaler
from polytask.core.task import Floats


class EarlyStopping:
    """What epochs were judged to be, by group: one of all tasks, or T groups of one task each.

    Parameters
    ----------
    constant_loss
        Each task's validation loss at the best constant, ``(T,)``; NaN: cannot be judged.
    each
        Whether each task is judged and stops by itself.
    patience
        Epochs without improvement before a group stops.
    trained
        Which tasks have training labels, ``(T,)``; the others, judged by themselves, have stopped before they began.

    Attributes
    ----------
    best
        Lowest score so far, ``(G,)``.
    best_epoch
        Its epoch from 0, ``(G,)``; -1 before the first.
    stopped
        Which groups have stopped, ``(G,)``.
    phase
        Epoch from which patience counts.
    """

    def __init__(self, constant_loss: Floats, *, each: bool, patience: int, trained: NDArray[np.bool_]) -> None:
        self.constant_loss, self.each, self.patience = constant_loss, each, patience
        groups = len(constant_loss) if each else 1
        self.best = torch.full((groups,), torch.inf, dtype=torch.float64)
        self.best_epoch = torch.full((groups,), -1, dtype=torch.int64)
        self.stopped = torch.from_numpy(~trained) if each else torch.zeros(groups, dtype=torch.bool)
        self.phase = 0

    def judge(self, valid: Floats, epoch: int) -> Tensor:
        """Compare an epoch's validation losses ``(T,)`` with the best so far and return who improved, ``(G,)``."""
        relative = valid / self.constant_loss
        if self.each:
            score = torch.from_numpy(relative)
        else:
            seen = relative[np.isfinite(relative)]
            score = torch.tensor([seen.mean() if len(seen) else np.nan], dtype=torch.float64)
        blind = score.isnan()
        improved = ~self.stopped & (blind | (score < self.best))
        self.best = torch.where(improved & ~blind, score, self.best)
        self.best_epoch = torch.where(improved, epoch, self.best_epoch)
        since = epoch - self.best_epoch.clamp(min=self.phase - 1)
        self.stopped |= (since >= self.patience) & ~blind
        if not bool(blind.all()):  # tasks that cannot be judged stop with the last of the others
            self.stopped |= bool((self.stopped | blind).all())
        return improved

    def begin_phase(self, epoch: int) -> None:
        """Count patience anew for all, from this epoch on."""
        self.phase = epoch
        self.stopped.fill_(False)

    def over(self) -> bool:
        """Return whether all have stopped."""
        return bool(self.stopped.all())

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds; the phase is beside them."""
        return {"stop/best": self.best, "stop/best_epoch": self.best_epoch, "stop/stopped": self.stopped}

    def load(self, tensors: Mapping[str, Tensor], phase: int) -> None:
        """Take over what :meth:`state` gave."""
        self.best, self.best_epoch = tensors["stop/best"], tensors["stop/best_epoch"]
        self.stopped, self.phase = tensors["stop/stopped"], phase


def constant_losses(train: TaskData, valid: TaskData | None, scaler: TargetScaler) -> Floats:
    """Return each task's validation loss at the best constant of its training labels; NaN: cannot be judged."""
    found = np.full(len(train.tasks), np.nan)
    if valid is None:
        return found
    for number, task in enumerate(train.tasks):
        labels = valid.labels[task.name]
        if len(labels) and len(train.labels[task.name]):
            scores = task.constant_scores(scaler.apply(number, train.labels[task.name].values))
            values = scaler.apply(number, labels.values)
            loss = task.losses(np.broadcast_to(scores, (len(values), task.n_outputs)), values).mean()
            found[number] = loss if loss > 1e-12 else np.nan
    return found
