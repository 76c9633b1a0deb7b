"""Small data sets for the tests of this room."""

import numpy as np

from polytask.core.data import TaskData
from polytask.core.task import Binary, Multiclass, Ordinal, Regression


def wide(n=240, seed=0, missing=0.0, tasks=4, categorical=False):
    """Four kinds of task on the same rows; ``missing`` is the share of absent labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    hidden = x @ rng.normal(size=(5, 4)) + 0.3 * rng.normal(size=(n, 4))
    kinds = (
        Regression("height"),
        Binary("ill", classes=("no", "yes")),
        Ordinal("health", classes=("poor", "fair", "good", "excellent")),
        Multiclass("colour", classes=("red", "green", "blue")),
    )[:tasks]
    columns = np.stack(
        [
            170 + 10 * hidden[:, 0],
            (hidden[:, 1] > 0).astype(float),
            np.digitize(hidden[:, 2], [-1.5, 0, 1.5]).astype(float),
            np.digitize(hidden[:, 3], [-1, 1]).astype(float),
        ],
        axis=1,
    )[:, :tasks]
    columns[rng.random(columns.shape) < missing] = np.nan
    if not categorical:
        return TaskData.from_columns(kinds, {"numeric": x}, columns)
    codes = np.stack([rng.integers(0, 3, n), rng.integers(0, 5, n)], axis=1)
    return TaskData.from_columns(kinds, {"numeric": x, "categorical": codes}, columns, cardinalities=(3, 5))


def schools(sizes=(30, 12, 50), seed=0, own_slope=False):
    """One label per row; the first feature is the number of the row's task."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(len(sizes)), sizes)
    rng.shuffle(number)
    x = np.column_stack([number, rng.normal(size=(len(number), 3))])
    y = x[:, 1:] @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=len(number))
    if own_slope:
        y = np.where(number % 2 == 0, y, -y)
    return TaskData.from_stacked([Regression(f"school {t}") for t in range(len(sizes))], {"numeric": x}, number, y)
