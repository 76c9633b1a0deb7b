"""Task clustering (TC): tasks whose nearest-neighbour metrics serve each other share one metric.

    d_u(x, z) = sqrt(sum_j u_j (x_j - z_j)²),     u >= 0, sum_j u_j = d

1. u_t for every task alone: least mean distance between rows of a class minus that between classes.
2. Transfer C (T, T): C_ts is the leave-one-out accuracy of nearest neighbours on task t under u_s.
3. The partition into k clusters A_b with the largest J = 1/T sum_b 1/|A_b| sum_{s, t in A_b} C_ts;
   all of them are tried for up to 8 tasks, else greedy merging and annealing.
4. One metric per cluster, from the pairs of all its tasks.

A task is predicted from its own rows under the metric of its cluster. A new task joins the cluster
whose metric has the best leave-one-out accuracy on its few examples. Columns are divided by their
standard deviation first. k = 1 is one metric for all tasks, k = T one for each alone.

Thrun & O'Sullivan, Discovering structure in multiple learning tasks: the TC algorithm, ICML 1996.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.layout import read, split_tasks, task_numbers
from polytask.linear.parameters import count, not_negative
from polytask.linear.penalised import feature_names, names_of
from polytask.linear.solvers.metric import fit_metric, squared_distances
from polytask.linear.solvers.partition import best_partition, criterion

_MOST_ROWS = 1000  # of a task from which its metric is learned
_CHUNK = 2000  # rows whose neighbours are looked for at once


class TaskClustering(ClassifierMixin, BaseEstimator):
    """Nearest neighbours of several classification tasks with one learned metric per cluster of tasks.

    Parameters
    ----------
    n_clusters
        k; no more than there are tasks are used.
    n_neighbors
        Neighbours that vote; equal votes go to the first class.
    n_starts
        Starts of the annealing, with more than 8 tasks.
    tol
        Stop learning a metric when a step lowers its objective by at most ``tol`` of that at the start.
    max_iter
        Largest number of steps for a metric.
    random_state
        Seed of the annealing, and of the 1000 rows from which the metric of a larger task is learned.

    Attributes
    ----------
    tasks_ : ndarray of shape (n_tasks,)
        Task labels (column numbers where ``tasks`` was not given).
    classes_ : ndarray
        Classes of all tasks, sorted.
    own_metrics_ : ndarray of shape (n_tasks, n_features)
        u_t, for columns divided by ``scale_``.
    metrics_ : ndarray of shape (n_clusters, n_features)
        u of the clusters.
    transfer_ : ndarray of shape (n_tasks, n_tasks)
        C.
    labels_ : ndarray of shape (n_tasks,)
        Cluster of each task, 0 for that of the first task, and so on.
    criterion_ : float
        J of the partition.
    scale_ : ndarray of shape (n_features,)
        Standard deviations (1 where a column does not vary).
    relations_ : dict of Relation
        ``"transfer"`` C, ``"task clusters"`` (1 where a task belongs to a cluster) and ``"metrics"``.
    n_iter_ : int
        Most steps that a metric took.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 6))
    >>> y = np.column_stack([X[:, 0] > 0, X[:, 0] > 0.2, X[:, 1] > 0, X[:, 1] > -0.2])
    >>> TaskClustering(2).fit(X, y).labels_
    array([0, 0, 1, 1])
    """

    def __init__(
        self,
        n_clusters: int = 2,
        *,
        n_neighbors: int = 1,
        n_starts: int = 5,
        tol: float = 1e-5,
        max_iter: int = 200,
        random_state: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_neighbors = n_neighbors
        self.n_starts = n_starts
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, tasks: Any = None) -> TaskClustering:
        """Learn metrics and clusters.

        Parameters
        ----------
        X
            Inputs, ``(n_samples, n_features)``, finite.
        y
            Classes: numbers ``(n_samples, n_tasks)`` with NaN where a label is missing, or any labels
            ``(n_samples,)``.
        tasks
            Task label of each row, ``(n_samples,)``, with ``y`` of shape ``(n_samples,)``, or the name of the
            column of the frame ``X`` that holds them; None means that the columns of ``y`` are the tasks.

        Returns
        -------
        self
        """
        wanted = count("n_clusters", self.n_clusters, "the number of clusters")
        count("n_neighbors", self.n_neighbors, "the number of neighbours that vote")
        starts = count("n_starts", self.n_starts, "the number of starts of the annealing")
        steps = count("max_iter", self.max_iter, "the largest number of steps for a metric")
        tol = not_negative("tol", self.tol, "the precision at which a metric stops")
        self._task_column = tasks if isinstance(tasks, str) else None
        X, tasks = split_tasks(X, tasks)
        X = np.asarray(validate_data(self, X, dtype=np.float64))
        self.classes_, codes = _classes(y, len(X))
        layout = read(X, codes, tasks, None)
        self.tasks_, self._form = layout.names, layout.form
        T = len(layout.names)
        spread = X.std(axis=0)
        self.scale_ = np.where(spread > 1e-12 * np.maximum(np.abs(X).max(axis=0), 1e-300), spread, 1.0)
        self._rows: list[Floats] = [np.zeros((0, 0))] * T
        self._codes: list[Ints] = [np.zeros(0, dtype=np.int64)] * T
        for block in layout.blocks:
            rows = block.X / self.scale_
            for column, task in zip(block.Y.T, block.outputs.tolist(), strict=True):
                self._rows[task], self._codes[task] = rows, column.astype(np.int64)
        parts = self._parts()
        own = [fit_metric([part], tol=tol, max_steps=steps) for part in parts]
        self.own_metrics_ = np.array([u for u, _ in own])
        data = list(zip(self._rows, self._codes, strict=True))
        self.transfer_ = np.array([[self._accuracy(rows, y_, u) for u in self.own_metrics_] for rows, y_ in data])
        self.labels_ = best_partition(self.transfer_, min(wanted, T), n_starts=starts, seed=self.random_state)
        self.criterion_ = criterion(self.transfer_, self.labels_)
        found = []
        for cluster in range(int(self.labels_.max()) + 1):
            members = np.flatnonzero(self.labels_ == cluster).tolist()
            one = len(members) == 1
            found.append(own[members[0]] if one else fit_metric([parts[t] for t in members], tol=tol, max_steps=steps))
        self.metrics_ = np.array([u for u, _ in found])
        self.n_iter_ = max(1, *(len(values) - 1 for _, values in own + found))
        return self

    def _parts(self) -> list[tuple[Floats, Ints]]:
        """Return the rows from which metrics are learned, and their class numbers."""
        rng = np.random.default_rng(self.random_state)
        parts = []
        for rows, codes in zip(self._rows, self._codes, strict=True):
            chosen = np.arange(len(rows))
            if len(rows) > _MOST_ROWS:
                chosen = np.sort(rng.choice(len(rows), _MOST_ROWS, replace=False))
            parts.append((rows[chosen], codes[chosen]))
        return parts

    def _accuracy(self, rows: Floats, codes: Ints, u: Floats) -> float:
        """Return the leave-one-out accuracy; 0 with one row."""
        if len(rows) < 2:
            return 0.0
        return float((self._vote(rows, rows, codes, u, leave_out=True) == codes).mean())

    def _vote(self, X: Floats, rows: Floats, codes: Ints, u: Floats, *, leave_out: bool = False) -> Ints:
        """Return the class number of most neighbours among ``rows``; ``leave_out``: row i is not its own neighbour."""
        k = min(int(self.n_neighbors), len(rows) - leave_out)
        found = np.empty(len(X), dtype=np.int64)
        for start in range(0, len(X), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(X)))
            distances = squared_distances(X[part], rows, u)
            if leave_out:
                distances[np.arange(part.stop - start), np.arange(start, part.stop)] = np.inf
            if k == 1:
                found[part] = codes[distances.argmin(axis=1)]
                continue
            near = codes[np.argpartition(distances, k - 1, axis=1)[:, :k]]
            votes = (near[:, :, None] == np.arange(len(self.classes_))).sum(axis=1)
            found[part] = votes.argmax(axis=1)
        return found

    def _inputs(self, X: Any, tasks: Any) -> tuple[Floats, Any]:
        check_is_fitted(self)
        if self._task_column is not None and self._task_column in list(getattr(X, "columns", ())):
            X, own = split_tasks(X, self._task_column)
            tasks = own if tasks is None else tasks
        X, tasks = split_tasks(X, tasks)
        X = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        if tasks is None and self._form == "stacked":
            raise InputError("the model was fitted with task labels; give the task of each row as tasks")
        if tasks is not None and self._form == "columns":
            raise InputError("the model was fitted on columns of y; call predict without tasks for all columns")
        return X / self.scale_, tasks

    def predict(self, X: Any, tasks: Any = None) -> NDArray[Any]:
        """Return classes: ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``."""
        X, tasks = self._inputs(X, tasks)
        if tasks is not None:
            number = task_numbers(tasks, self.tasks_, len(X))
            codes = np.empty(len(X), dtype=np.int64)
            for task in np.unique(number).tolist():
                codes[number == task] = self._predict(task, X[number == task])
        else:
            codes = np.column_stack([self._predict(task, X) for task in range(len(self.tasks_))])
            codes = codes[:, 0] if self._form == "single" else codes
        return np.asarray(self.classes_[codes])

    def _predict(self, task: int, X: Floats) -> Ints:
        return self._vote(X, self._rows[task], self._codes[task], self.metrics_[self.labels_[task]])

    def score(self, X: Any, y: Any, sample_weight: Any = None, tasks: Any = None) -> float:
        """Return the mean over tasks of the accuracy on the labelled cells."""
        predicted = self.predict(X, tasks)
        truth = np.asarray(y).reshape(predicted.shape)
        weight = np.ones(len(truth)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if predicted.ndim == 2:
            seen = ~np.isnan(truth.astype(np.float64)) * weight[:, None]
            shares = (seen * (predicted == truth)).sum(axis=0) / seen.sum(axis=0)
            return float(shares.mean())
        number = np.zeros(len(truth), dtype=np.int64)
        if self._form == "stacked":
            number = task_numbers(self._inputs(X, tasks)[1], self.tasks_, len(truth))
        used = np.bincount(number, weight)
        right = np.bincount(number, weight * (predicted == truth))
        return float((right[used > 0] / used[used > 0]).mean())

    def cluster_of(self, X: Any, y: Any) -> int:
        """Return the cluster for a new task: the one whose metric has the best leave-one-out accuracy on its examples.

        Parameters
        ----------
        X, y
            Examples of the new task, ``(n_samples, n_features)`` and ``(n_samples,)``; its classes may be new.
        """
        rows, codes, _ = self._examples(X, y)
        return int(np.argmax([self._accuracy(rows, codes, u) for u in self.metrics_]))

    def predict_new_task(self, X: Any, examples: Any, labels: Any) -> NDArray[Any]:
        """Return classes of the rows of ``X`` for a new task with a few labelled examples.

        Parameters
        ----------
        X
            Inputs to predict, ``(n_samples, n_features)``.
        examples, labels
            Examples of the new task, as of :meth:`cluster_of`.
        """
        rows, codes, classes = self._examples(examples, labels)
        u = self.metrics_[self.cluster_of(examples, labels)]
        inputs = np.asarray(validate_data(self, X, dtype=np.float64, reset=False)) / self.scale_
        return np.asarray(classes[self._vote(inputs, rows, codes, u)])

    def _examples(self, X: Any, y: Any) -> tuple[Floats, Ints, NDArray[Any]]:
        check_is_fitted(self)
        rows = np.asarray(validate_data(self, X, dtype=np.float64, reset=False)) / self.scale_
        classes, codes = _classes(y, len(rows))
        if codes.ndim != 1:
            raise InputError(f"y has shape {codes.shape}; give the labels (n_samples,) of one new task")
        return rows, codes.astype(np.int64), classes

    @property
    def relations_(self) -> dict[str, Relation]:
        """What was learned about the tasks, by name."""
        check_is_fitted(self)
        tasks = names_of(self.tasks_)
        clusters = tuple(f"cluster {number + 1}" for number in range(len(self.metrics_)))
        members = (self.labels_ == np.arange(len(clusters))[:, None]).astype(np.float64)
        about = "Leave-one-out accuracy of the row's task under the metric learned on the column's task."
        return {
            "transfer": Relation("weights", self.transfer_, tasks, tasks, about),
            "task clusters": Relation("loadings", members, clusters, tasks, "1 where a task belongs to a cluster."),
            "metrics": Relation(
                "coefficients",
                self.metrics_.T,
                feature_names(self, self.metrics_.shape[1]),
                clusters,
                "Weight of each standardised input in the distance of a cluster; 1 on average.",
            ),
        }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _classes(y: Any, n: int) -> tuple[NDArray[Any], Floats]:
    """Return the classes and the class numbers in the shape of ``y``, NaN where a label is missing."""
    if y is None:
        raise InputError("requires y to be passed, but the target y is None")
    if np.asarray(y).ndim == 2:
        table = check_array(y, ensure_all_finite="allow-nan", input_name="y")
        seen = ~np.isnan(table)
        values = table[seen]
    else:
        table = check_array(y, dtype=None, ensure_2d=False, input_name="y")
        values, seen = table, np.ones(table.shape, dtype=np.bool_)
    if table.ndim not in (1, 2) or len(table) != n:
        raise InputError(f"y has shape {table.shape} but X has {n} rows; give (n_samples,) or (n_samples, n_tasks)")
    codes = np.full(table.shape, np.nan)
    if not len(values):
        return values, codes
    check_classification_targets(values)
    classes, numbers = np.unique(values, return_inverse=True)
    codes[seen] = numbers
    return classes, codes
