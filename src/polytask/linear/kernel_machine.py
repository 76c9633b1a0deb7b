"""What kernel methods of several tasks share: labelled cells, task kernels, predicting from dual coefficients.

    f_t(x) = sum_q sum_j k_q(x, x_j) sum_s B_q[t, s] a[s, j]  +  b_t

with a[s, j] = 0 where row j has no label of task s.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, check_is_fitted

from polytask.core.data import Ints
from polytask.core.errors import InputError, unknown
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator
from polytask.linear.graph_regularised import edge_weights
from polytask.linear.kernels import Kernel, check_length_scale, default_length_scale, kernel_matrix
from polytask.linear.layout import Layout, read, split_tasks, task_numbers
from polytask.linear.moments import Block, Moments
from polytask.linear.parameters import not_negative, positive
from polytask.linear.solvers.task_kernel import Cells

TASK_KERNELS = ("mean", "graph", "identity")
_CHUNK = 16_000_000  # numbers in a piece of the kernel between new and known rows


class KernelMachine(TaskEstimator):
    """Functions of several tasks in the span of kernels at the labelled rows (abstract).

    Subclasses learn from :class:`Cells` of the tasks that have something to learn from (``_active``)
    and call :meth:`_remember`. Tasks with their intercept only (see TaskEstimator) have f_t = 0.
    """

    loss: Any = "squared"
    task_weighting: Any = "equal"
    fit_intercept: bool = True
    X_fit_: Floats
    intercept_: Floats
    dual_coef_: Floats
    _active: Ints
    _kernels: list[Kernel]
    _scales: list[Floats]
    _weights: list[Floats]

    def _read(self, X: Any, y: Any, tasks: Any, sample_weight: Any, *, reset: bool) -> tuple[Any, Layout]:
        """Return inputs and a layout whose blocks hold row numbers in the place of inputs."""
        labels = (split_tasks(X, tasks) if reset else self._tasks_of(X, tasks))[1]
        inputs, _ = super()._read(X, y, tasks, sample_weight, reset=reset)
        target = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan")
        numbers = np.arange(len(inputs), dtype=np.float64)[:, None]
        return inputs.astype(np.float64, copy=False), read(numbers, target, labels, sample_weight)

    @abstractmethod
    def _fit_cells(self, cells: Cells) -> None:
        """Learn from the labelled cells of the tasks ``_active`` on the rows ``X_fit_``; there may be none."""

    def _fit(self, X: Floats, layout: Layout) -> None:
        self._active, cells, used = _cells(layout)
        self.X_fit_ = X[used]
        self._fit_cells(cells)

    def _set_idle_tasks(self) -> None:
        if self._idle is not None:
            self.intercept_[self._idle.rows] = self._idle.intercepts

    def _totals(self, cells: Cells) -> Floats:
        """Return the summed weights of the labels of every task, ``(T,)``."""
        totals = np.zeros(len(self.tasks_))
        if self._idle is not None:
            totals[self._idle.rows] = self._idle.totals
        totals[self._active] = cells.totals()
        return totals

    def _length_scale(self, length_scale: Any, cells: Cells) -> Floats:
        """Read the argument ``length_scale``, ``(1,)`` or ``(d,)``."""
        if length_scale is None:
            return np.array([default_length_scale(self.X_fit_, cells.row_weights())])
        return check_length_scale(length_scale, self.X_fit_.shape[1])

    def _among_active(self, B: Floats) -> Floats:
        """Return the part ``(A, A)`` of a task covariance ``(T, T)``."""
        return np.asarray(B[np.ix_(self._active, self._active)])

    def _among_all(self, B: Floats) -> Floats:
        """Return a task covariance ``(T, T)`` that is 0 for the tasks with their intercept only."""
        full = np.zeros((len(self.tasks_), len(self.tasks_)))
        full[np.ix_(self._active, self._active)] = B
        return full

    def _remember(
        self,
        kernels: Sequence[Kernel],
        scales: Sequence[Floats],
        Bs: Sequence[Floats],
        dual: Floats,
        intercept: Floats,
    ) -> None:
        """Keep what predicting needs, from a ``(A, n)``, B_q ``(A, A)`` and b ``(A,)`` of the active tasks."""
        T, n = len(self.tasks_), len(self.X_fit_)
        self._kernels, self._scales, self._weights = list(kernels), list(scales), []
        self.dual_coef_ = np.zeros((T, n))
        self.dual_coef_[self._active] = dual
        self.intercept_ = np.zeros(T)
        self.intercept_[self._active] = intercept
        for B in Bs:
            weights = np.zeros((T, n))
            weights[self._active] = B @ dual
            self._weights.append(weights)

    def _cross(self, X: Floats) -> list[Floats]:
        return [kernel_matrix(k, X, self.X_fit_, scale) for k, scale in zip(self._kernels, self._scales, strict=True)]

    def _functions(self, X: Floats, number: Ints | None) -> Floats:
        """Return f_t(x) of all tasks ``(n, T)``, or of the task ``number`` of every row ``(n,)``."""
        T = len(self.intercept_)
        found = np.empty((len(X), T) if number is None else len(X))
        step = max(1, _CHUNK // max(1, len(self.X_fit_)))
        for start in range(0, len(X), step):
            part = slice(start, start + step)
            cross = self._cross(X[part]) if len(self.X_fit_) else []
            pairs = list(zip(cross, self._weights, strict=False))
            if number is None:
                found[part] = self.intercept_ + sum(K @ weights.T for K, weights in pairs)
            else:
                own = number[part]
                found[part] = self.intercept_[own] + sum(np.einsum("nm,nm->n", K, w[own]) for K, w in pairs)
        return found

    def _asked(self, X: Any, tasks: Any) -> tuple[Floats, Ints | None]:
        """Return checked inputs and, with task labels, the number of every row's task."""
        check_is_fitted(self)
        X, tasks = self._tasks_of(X, tasks)
        X = self._inputs(X, reset=False).astype(np.float64, copy=False)
        if tasks is None:
            return X, None
        if self._form == "columns":
            raise InputError("the model was fitted on columns of y; call predict without tasks for all columns")
        return X, task_numbers(tasks, self.tasks_, len(X))

    def task_scores(self, X: Any, tasks: Any = None) -> Floats:
        """Return f_t(x): ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``."""
        X, number = self._asked(X, tasks)
        scores = self._functions(X, number)
        return scores[:, 0] if number is None and self._form == "single" else scores

    def predict(self, X: Any, tasks: Any = None) -> Floats:
        """Return the prediction; shapes as of :meth:`task_scores`."""
        return self.task_scores(X, tasks)

    def fit_moments(self, moments: Moments) -> TaskEstimator:  # noqa: ARG002 - refused whatever it holds
        """Refuse: kernels need the rows."""
        raise InputError(f"{type(self).__name__} has a kernel, which needs the rows; call fit with X and y")

    def score(self, X: Any, y: Any, sample_weight: Any = None, tasks: Any = None) -> float:
        """Return the mean over tasks of R² (accuracy for classes) on the labelled cells."""
        check_is_fitted(self)
        X, layout = self._read(X, y, tasks, sample_weight, reset=False)
        place = np.arange(len(layout.names))
        if layout.form == "stacked":
            place = task_numbers(layout.names, self.tasks_, len(layout.names))
        elif len(place) != len(self.tasks_):
            raise InputError(
                f"y has {len(place)} columns but the model has {len(self.tasks_)} tasks; where each row belongs to one "
                "task, pass tasks too"
            )
        scores = np.empty(len(place))
        for block in layout.blocks:
            rows, known = X[block.X[:, 0].astype(np.int64)], place[block.outputs]
            if len(known) == 1:
                margin = self._functions(rows, np.full(len(rows), known[0]))[:, None]
            else:
                margin = self._functions(rows, None)[:, known]
            scores[block.outputs] = self._quality(block, margin)
        return float(scores.mean())

    def _quality(self, block: Block, margin: Floats) -> Floats:
        """Return R² of each column of the block."""
        a = block.weights
        rest = a @ np.square(block.Y - margin)
        spread = a @ np.square(block.Y - a @ block.Y / block.total)
        return np.where(spread > 0, 1.0 - rest / np.where(spread > 0, spread, 1.0), np.where(rest > 0, 0.0, 1.0))


def _cells(layout: Layout) -> tuple[Ints, Cells, Ints]:
    """Return the tasks that have labels in the layout, their cells, and the numbers of the rows with a label."""
    parts: list[tuple[int, Ints, Floats, Floats]] = []
    for block in layout.blocks:
        rows = block.X[:, 0].astype(np.int64)
        columns = zip(block.outputs.tolist(), block.Y.T, strict=True)
        parts.extend((task, rows, column, block.weights) for task, column in columns)
    parts.sort(key=lambda part: part[0])
    empty = np.zeros(0)
    rows = np.concatenate([empty.astype(np.int64), *(part[1] for part in parts)])
    used, place = np.unique(rows, return_inverse=True)
    cells = Cells(
        place.astype(np.int64),
        np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts]),
        np.concatenate([empty, *(part[2] for part in parts)]),
        np.concatenate([empty, *(part[3] for part in parts)]),
        len(used),
        len(parts),
    )
    return np.array([part[0] for part in parts], dtype=np.int64), cells, used


def task_kernel_matrix(task_kernel: Any, mu: Any, graph: Any, tasks: NDArray[Any]) -> Floats:
    """Return B of a task kernel that is not learned, ``(T, T)``.

    Parameters
    ----------
    task_kernel
        ``"mean"``: (1 1^T + mu I) / (1 + mu), the limit I for mu = inf; ``"graph"``: (Lap + mu I)^-1;
        ``"identity"``: every task alone; or a positive semidefinite matrix in the order of ``tasks``.
    graph
        As of :class:`~polytask.linear.graph_regularised.GraphRegularised`.
    """
    T = len(tasks)
    if not isinstance(task_kernel, str):
        return task_covariance_matrix("task_kernel", task_kernel, T)
    if task_kernel == "identity":
        return np.eye(T)
    if task_kernel == "mean":
        independence = np.inf if mu == np.inf else not_negative("mu", mu, "how independent the tasks are")
        correlation = 1.0 / (1.0 + independence)
        return correlation * np.ones((T, T)) + (1.0 - correlation) * np.eye(T)
    if task_kernel == "graph":
        ridge = positive("mu", mu, "what is added to the diagonal of the graph's Laplacian")
        weights = edge_weights(graph, tasks)
        inverse = np.linalg.inv(np.diag(weights.sum(axis=1)) - weights + ridge * np.eye(T))
        return np.asarray(0.5 * (inverse + inverse.T))
    raise InputError(unknown("task_kernel", task_kernel, TASK_KERNELS) + " Or give a matrix.")


def task_covariance_matrix(name: str, values: Any, n_tasks: int) -> Floats:
    """Return a given task covariance ``(T, T)``; refuse what is not symmetric and positive semidefinite."""
    B = np.array(values, dtype=np.float64)
    if B.shape != (n_tasks, n_tasks) or not np.isfinite(B).all():
        raise InputError(f"{name} has shape {B.shape}; give finite numbers ({n_tasks}, {n_tasks}), one row per task")
    size = float(np.abs(B).max(initial=0.0))
    if np.abs(B - B.T).max(initial=0.0) > 1e-10 * size:
        raise InputError(f"{name} is not symmetric; give the same number for (s, t) and (t, s)")
    B = 0.5 * (B + B.T)
    least = float(np.linalg.eigvalsh(B)[0])
    if least < -1e-10 * size:
        raise InputError(f"{name} has the eigenvalue {least:.3g}; a covariance of tasks has none below 0")
    return B
