"""Centre and scale regression targets with figures of the training rows only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.data import TaskData
from polytask.core.task import Floats, Regression


@dataclass(frozen=True)
class TargetScaler:
    """Per task: standardised target = (y - mean) / scale; classes pass through unchanged.

    Parameters
    ----------
    mean, scale
        Shape ``(T,)``, in the order of the tasks; 0 and 1 for kinds with classes, and scale 1 for a
        constant target or one with fewer than two labels.
    """

    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, data: TaskData) -> TargetScaler:
        """Read mean and standard deviation from the labelled rows of each regression task."""
        mean, scale = np.zeros(len(data.tasks)), np.ones(len(data.tasks))
        for number, task in enumerate(data.tasks):
            values = data.labels[task.name].values
            if isinstance(task, Regression) and len(values):
                mean[number] = values.mean()
                spread = values.std()
                scale[number] = spread if spread > 1e-12 * max(1.0, abs(mean[number])) else 1.0
        return cls(mean, scale)

    def apply(self, number: int, values: Floats) -> Floats:
        """Standardise the targets of task ``number``."""
        return np.asarray((values - self.mean[number]) / self.scale[number])

    def undo(self, number: int, scores: Floats) -> Floats:
        """Bring the scores of task ``number`` back to units of the target."""
        return np.asarray(scores * self.scale[number] + self.mean[number])
