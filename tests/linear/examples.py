"""Small data sets for the tests of learners."""

import numpy as np

from polytask.core.data import TaskData
from polytask.core.task import Binary, Regression


def wide(seed=0, n=150, missing=0.2, binary=True):
    """Two opposed targets of the same rows and, with ``binary``, one of two classes; some labels missing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5))
    signal = X @ rng.normal(size=5)
    Y = np.column_stack([100 + 20 * (signal + rng.normal(size=n)), -3 * signal + rng.normal(size=n), signal > 0.3])
    Y = Y.astype(float)
    Y[rng.random(Y.shape) < missing] = np.nan
    tasks = (Regression("up"), Regression("down"), Binary("yes", (), ("0", "1")))[: 2 + binary]
    return TaskData.from_columns(tasks, {"numeric": X}, Y[:, : len(tasks)])


def long(seed=0, tasks=10, each=14):
    """Tasks with rows and a level of their own; even and odd ones are alike."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(tasks), each)
    X = rng.normal(size=(len(task), 3))
    centre = np.array([[2.0, 0.0, 0.0], [0.0, -2.0, 1.0]])[np.arange(tasks) % 2]
    level = 3.0 * rng.normal(size=tasks)
    y = 50 + 10 * (np.einsum("nd,nd->n", X, centre[task]) + level[task] + 0.3 * rng.normal(size=len(task)))
    return TaskData.from_stacked([Regression(f"school {t}") for t in range(tasks)], {"numeric": X}, task, y)


def standardised(data):
    """Return inputs, standardised targets and task numbers of the rows of :func:`long`, as estimators want them."""
    y, number = np.empty(data.n_rows), np.empty(data.n_rows, dtype=int)
    for t, task in enumerate(data.tasks):
        labels = data.labels[task.name]
        y[labels.rows] = (labels.values - labels.values.mean()) / labels.values.std()
        number[labels.rows] = t
    return np.asarray(data.inputs["numeric"]), y, number
