"""Graph-regularised multi-task learning: tasks that a known graph joins have similar coefficients.

    min_{W, b}  sum_t c_t / n_t sum_{i in t} loss_t(y_it, x_i^T w_t + b_t)
                + alpha / 2 ( sum_{s < t} A_st ||w_s - w_t||² + ridge sum_t ||w_t||² )

W: (T tasks, d features), A: (T, T) symmetric weights of the edges, none negative. With the Laplacian
Lap = diag(A 1) - A the penalty is alpha / 2 tr(W^T (Lap + ridge I) W): a kernel machine whose tasks
have the covariance (Lap + ridge I)^-1 / alpha. The complete graph with weights 1 / T draws every task
to the mean, sum_t ||w_t - w_mean||².

Evgeniou, Micchelli & Pontil, Learning multiple tasks with kernel methods, JMLR 2005.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator, warn_unconverged
from polytask.linear.layout import Layout, task_numbers
from polytask.linear.penalised import not_negative, positive, task_relations
from polytask.linear.solvers.quadratic import solve_quadratic


class GraphRegularised(TaskEstimator):
    """Ridge models of several tasks, drawn together along the edges of a graph (see the module for the formula).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    ridge
        Strength on the coefficients themselves relative to that on differences, not negative.
    graph
        Weights of the edges: an array ``(n_tasks, n_tasks)`` in the order of ``tasks_``, symmetric and not
        negative (its diagonal does not count); a mapping from pairs of task labels to weights; or
        None, the complete graph with weights 1 / T.
    loss, epsilon, task_weighting, fit_intercept
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    tol
        Stop when the largest entry of the gradient is at most ``tol`` times that at W = 0.
    max_iter
        Largest number of conjugate-gradient steps (Newton steps where systems are solved directly).
    warm_start
        Start from the coefficients of the previous fit.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
    intercept_ : ndarray of shape (n_tasks,)
    laplacian_ : ndarray of shape (n_tasks, n_tasks)
    relations_ : dict of Relation
        Prior covariance of the tasks (Lap + ridge I)^+, its correlation and tree.
    optimality_ : float
        Largest entry of the gradient.
    n_iter_ : int
    tasks_, logistic_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[-1.0], [1.0]])
    >>> Y = X * [[1.0, 3.0, 8.0]]
    >>> model = GraphRegularised(alpha=1.0, ridge=0.0, graph={(0, 1): 1e9}).fit(X, Y)
    >>> model.coef_.round(3)
    array([[2.],
           [2.],
           [8.]])
    """

    takes_sparse = True

    def __init__(
        self,
        alpha: float = 0.1,
        ridge: float = 0.1,
        *,
        graph: Any = None,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-8,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.ridge = ridge
        self.graph = graph
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _fit(self, X: Floats, layout: Layout) -> None:
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        ridge = not_negative("ridge", self.ridge, "the strength on the coefficients relative to that on differences")
        T, d = len(layout.names), X.shape[1]
        weights = edge_weights(self.graph, self.tasks_)
        self.laplacian_ = np.diag(weights.sum(axis=1)) - weights
        precision = self.laplacian_ + ridge * np.eye(T)
        losses = self._losses(layout.blocks, T, d, fit_intercept=self.fit_intercept)
        start = getattr(self, "coef_", None) if self.warm_start else None
        if start is not None and start.shape != (T, d):
            start = None
        found = solve_quadratic(
            losses, tasks=alpha * precision, tol=float(self.tol), max_steps=int(self.max_iter), start=start
        )
        self.coef_ = found.W
        self.intercept_ = found.intercept
        self.optimality_ = found.optimality
        self.n_iter_ = found.steps
        covariance: Floats = np.asarray(np.linalg.pinv(precision, hermitian=True), dtype=np.float64)
        self.relations_ = task_relations(
            covariance,
            self.tasks_,
            "Prior covariance of the tasks' coefficients under the graph, in units of 1 / alpha.",
        )
        if found.optimality > max(found.bound, 1e-12):
            warn_unconverged("GraphRegularised", found.optimality, found.bound, "a gradient of", int(self.max_iter))


def edge_weights(graph: Any, tasks: NDArray[Any]) -> Floats:
    """Return the weights ``(T, T)`` of a graph of the tasks: a matrix, a mapping from pairs of labels, or None: all."""
    T = len(tasks)
    if graph is None:
        return np.asarray((np.ones((T, T)) - np.eye(T)) / T)
    if isinstance(graph, Mapping):
        weights = np.zeros((T, T))
        for pair, weight in graph.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InputError(f"graph has the key {pair!r}; give pairs of task labels")
            first, second = (int(task_numbers(np.array([label]), tasks, 1)[0]) for label in pair)
            weights[first, second] = weights[second, first] = float(weight)
    else:
        weights = np.array(graph, dtype=np.float64)
        if weights.shape != (T, T):
            raise InputError(f"graph has shape {weights.shape}; give weights ({T}, {T}), one row per task")
        if np.abs(weights - weights.T).max(initial=0.0) > 1e-10 * np.abs(weights).max(initial=0.0):
            raise InputError("graph is not symmetric; give the average of the weights in both directions")
        weights = 0.5 * (weights + weights.T)
    np.fill_diagonal(weights, 0.0)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError("graph must have finite weights that are not negative; 0 is no edge")
    return weights
