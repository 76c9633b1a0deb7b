import numpy as np
import pytest

from polytask.core.data import TaskData
from polytask.core.task import Binary, Regression


@pytest.fixture
def table():
    """Three regression tasks on 90 rows, one against the others, one thinly labelled."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 4))
    Y = X @ np.outer(rng.normal(size=4), [1.0, 1.0, -1.0]) + 0.5 * rng.normal(size=(90, 3))
    Y[rng.random(90) < 0.4, 1] = np.nan
    return TaskData.from_columns([Regression("a"), Regression("b"), Regression("c")], X, Y)


@pytest.fixture
def with_binary(table):
    rng = np.random.default_rng(1)
    Y = np.column_stack([table.columns()[:, :2], rng.integers(0, 2, table.n_rows)])
    tasks = [Regression("a"), Regression("b"), Binary("yes", (), ("no", "yes"))]
    return TaskData.from_columns(tasks, table.inputs, Y)
