"""At which depth of a network each task's head sits, where the user does not say.

Low levels suit tasks that need little more than the inputs. For a table, ``"auto"`` therefore ranks the tasks by how
much of them a linear least-squares fit explains,

    1 - (SSE / (n - p)) / (SST / (n - 1))           (adjusted R², of the codes of classes; p columns and a constant),

the best explained lowest, and spreads them evenly over the levels. For images, and with ``"order"``, the tasks are
spread in the order they have in the data.
"""

from __future__ import annotations

import numpy as np

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Floats, Multiclass

RULES = ("auto", "order")
_MOST_CODES = 50
"""Categorical columns with more codes are left out of the linear fit."""


def parse_levels(text: str) -> dict[str, int] | None:
    """Return task → level of ``"price=1; sold=2"``; None for a rule.

    Raises
    ------
    InputError
        If the text is neither a rule nor a list of pairs.
    """
    if text in RULES:
        return None
    found = {}
    for pair in text.split(";"):
        name, equals, level = pair.rpartition("=")
        if not equals or not level.strip().isdecimal():
            raise InputError(
                f'levels is "{text}"; give "auto", "order" or the level of every task, such as "price=1; sold=2"'
            )
        found[name.strip()] = int(level)
    return found


def task_levels(text: str, train: TaskData, n_levels: int) -> dict[str, int]:
    """Return the level of every task, 1 … ``n_levels`` (0 where there are none).

    Parameters
    ----------
    text
        A rule, or pairs as in :func:`parse_levels`.
    train
        The training data that ``"auto"`` looks at.
    n_levels
        Number of stages after the input.
    """
    given = parse_levels(text)
    if given is not None:
        return given
    names = list(train.names)
    if text == "auto" and "numeric" in train.inputs:
        explained = linearly_explained(train)
        names.sort(key=lambda name: -explained[name])
    return {name: n_levels - (len(names) - 1 - rank) * n_levels // len(names) for rank, name in enumerate(names)}


def linearly_explained(train: TaskData) -> dict[str, float]:
    """Return for each task the adjusted R² of a linear fit to the table; 0 where the labels are too few or constant."""
    columns = _columns(train)
    found = {}
    for task in train.tasks:
        labels = train.labels[task.name]
        y = labels.values[:, None]
        if isinstance(task, Multiclass):
            y = (y == np.arange(len(task.classes))).astype(np.float64)
        found[task.name] = _adjusted(columns[labels.rows], y)
    return found


def _columns(train: TaskData) -> Floats:
    parts = [np.ones((train.n_rows, 1)), np.asarray(train.inputs["numeric"], dtype=np.float64)]
    for column, size in enumerate(train.cardinalities):
        if size <= _MOST_CODES:
            codes = np.asarray(train.inputs["categorical"])[:, column]
            parts.append((codes[:, None] == np.arange(1, size)).astype(np.float64))
    return np.concatenate(parts, axis=1)


def _adjusted(X: Floats, y: Floats) -> float:
    n = len(X)
    total = float(np.square(y - y.mean(axis=0)).sum()) if n else 0.0
    if total <= 1e-12 * n:
        return 0.0
    weights, _, rank, _ = np.linalg.lstsq(X, y, rcond=None)
    if n <= rank:
        return 0.0
    left = float(np.square(y - X @ weights).sum())
    return max(0.0, 1.0 - (left / (n - rank)) / (total / (n - 1)))
