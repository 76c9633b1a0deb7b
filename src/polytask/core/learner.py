"""The contract ``compare`` runs on: a Learner fits TaskData and gives a Model.

Every linear estimator and every pair of network and balancer stands behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import TaskData
from polytask.core.relation import Relation
from polytask.core.search import Distribution
from polytask.core.task import Floats, Task

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[str, float], None]
"""Called with a short text and the share of the fit that is done, 0 … 1."""


class Model(ABC):
    """A fitted model. It is saved as plain data plus arrays, never as code.

    Parameters
    ----------
    tasks
        The tasks it predicts.
    """

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self.tasks = tasks

    @abstractmethod
    def predict(self, data: TaskData) -> dict[str, Floats]:
        """Return task name → scores ``(n, n_outputs)`` for every row of encoded ``data``; labels are not read."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return (JSON-able description, named arrays); :meth:`from_state` is the inverse."""

    @classmethod
    @abstractmethod
    def from_state(cls, tasks: tuple[Task, ...], description: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """Build the model that :meth:`state` described; predictions are the same to 1e-6."""

    def relations(self) -> dict[str, Relation]:
        """Return what the tasks share, by name; empty when there is nothing to show."""
        return {}

    def history(self) -> dict[str, Any]:
        """Return learning curves ``{"epoch": [...], "train": {task: [...]}, "valid": {task: [...]}, "best_epoch": e}``.

        Curves are mean losses (standardised targets) per epoch. Empty when fitting has no epochs.
        """
        return {}


class Learner(Protocol):
    """A method that can be compared. Its hyper-parameters are the fields of a frozen dataclass.

    Attributes
    ----------
    sharing
        ``"single"`` (every task alone: a baseline), ``"pooled"`` (one model for all) or ``"shared"``.
    summary
        One line on what it does, for ``polytask methods`` and the report.
    inner_folds
        How many inner training/validation pairs tuning uses: 1 is a single validation part.
    refits
        True when the chosen configuration is fitted again on training and validation rows together;
        False when it needs the validation part for itself (early stopping).
    """

    sharing: ClassVar[str]
    summary: ClassVar[str]
    inner_folds: ClassVar[int]
    refits: ClassVar[bool]

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        """Return field name → where tuning may draw it from."""
        ...

    def refuses(self, task: Task) -> str | None:
        """Return why the method cannot learn this task (shown as ``n/a``), or None."""
        ...

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> Model:
        """Fit encoded data.

        Same data, fields and seed give the same model. ``checkpoint`` names a folder in which a
        long fit may keep what it needs to go on after a kill; quick fits ignore it.
        """
        ...


def task_losses(data: TaskData, scores: Mapping[str, Floats]) -> dict[str, float]:
    """Return the mean loss of each task over its labelled rows; NaN where a task has none."""
    found = {}
    for task in data.tasks:
        labels = data.labels[task.name]
        if task.name in scores:
            rows = task.losses(np.asarray(scores[task.name], dtype=np.float64)[labels.rows], labels.values)
            found[task.name] = float(rows.mean()) if len(rows) else float("nan")
    return found
