"""Support vector machines of several tasks with a kernel over inputs times a kernel over tasks.

    min_{f, b}  sum_t c_t / n_t sum_{i in t} loss(y_it, f_t(x_i) + b)  +  alpha / 2 ||f||²,

    K((x, s), (z, t)) = B_st k(x, z),        f_t(x) = sum_j B_{t t_j} k(x, x_j) a_j,   ||f||² = a^T K a

regression: loss = max(0, |y - z| - epsilon); classification: loss = max(0, 1 - y z) with y = ±1. It is
one support vector machine with C_i = c_t / (n_t alpha) on all labelled cells, solved by libsvm, so
there is one unpenalised intercept b; with ``intercepts="coupled"`` k is k + 1, which gives every task
an offset that is penalised like its function.

Evgeniou & Pontil, Regularized multi-task learning, KDD 2004; Evgeniou, Micchelli & Pontil, Learning
multiple tasks with kernel methods, JMLR 2005.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.kernel_machine import KernelMachine, task_kernel_matrix
from polytask.linear.kernels import Kernel, check_kernel, kernel_matrix
from polytask.linear.layout import weights_of
from polytask.linear.moments import Block
from polytask.linear.parameters import not_negative, positive
from polytask.linear.penalised import task_relations
from polytask.linear.solvers.task_kernel import Cells, cell_covariance

KINDS = ("regression", "classification")
INTERCEPTS = ("coupled", "common")


class TaskKernelSVM(KernelMachine):
    """Support vector regression or classification of several tasks (see the module for the formula).

    With one task and ``intercepts="common"`` it is scikit-learn's ``SVR`` or ``SVC`` with C = 1 / (n alpha).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    kind
        ``"regression"``, or ``"classification"`` with targets 0 and 1, for all tasks.
    task_kernel, mu, graph
        B: ``"mean"``, ``"graph"``, ``"identity"`` or a matrix, as of
        :class:`~polytask.linear.task_kernel_ridge.TaskKernelRidge`.
    kernel, length_scale
        As of :class:`~polytask.linear.task_kernel_ridge.TaskKernelRidge`.
    epsilon
        Half the width of the tube inside which regression errors cost nothing, in units of y; not negative.
    task_weighting
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    intercepts
        ``"coupled"``: b_t = b + e_t with e_t penalised like f_t; ``"common"``: b for all.
    tol
        Largest violation of the optimality conditions at which the solver stops.
    max_iter
        Largest number of its steps.

    Attributes
    ----------
    dual_coef_ : ndarray of shape (n_tasks, n_rows)
        a, 0 for cells that are no support vectors.
    n_support_ : ndarray of shape (n_tasks,)
        Number of support vectors of each task.
    X_fit_ : ndarray of shape (n_rows, n_features)
        The rows with a label.
    intercept_ : ndarray of shape (n_tasks,)
    task_kernel_ : ndarray of shape (n_tasks, n_tasks)
        B.
    relations_ : dict of Relation
        B as covariance of the tasks, its correlation and tree.
    length_scale_ : ndarray
    dual_gap_ : float
        Objective minus a lower bound of its minimum.
    n_iter_ : int
        Steps of the solver.
    tasks_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> y = np.concatenate([X[:, 0] > 0, X[:, 0] > 0.2]).astype(float)
    >>> tasks = ["a"] * 20 + ["b"] * 20
    >>> model = TaskKernelSVM(alpha=0.01, kind="classification").fit(np.vstack([X, X]), y, tasks=tasks)
    >>> model.predict([[0.15], [0.15]], ["a", "b"])
    array([1., 0.])
    """

    def __init__(
        self,
        alpha: float = 0.01,
        *,
        kind: str = "regression",
        task_kernel: Any = "mean",
        mu: float = 0.1,
        graph: Any = None,
        kernel: Kernel = "rbf",
        length_scale: Any = None,
        epsilon: float = 0.1,
        task_weighting: Any = "equal",
        intercepts: str = "coupled",
        tol: float = 1e-6,
        max_iter: int = 10_000_000,
    ) -> None:
        self.alpha = alpha
        self.kind = kind
        self.task_kernel = task_kernel
        self.mu = mu
        self.graph = graph
        self.kernel = kernel
        self.length_scale = length_scale
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.intercepts = intercepts
        self.tol = tol
        self.max_iter = max_iter

    def _lends(self) -> bool:
        return True

    def _fit_cells(self, cells: Cells) -> None:
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        epsilon = not_negative("epsilon", self.epsilon, "half the width of the tube without cost")
        kernel = check_kernel(self.kernel)
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.intercepts not in INTERCEPTS:
            raise InputError(
                f"intercepts must be one of {', '.join(INTERCEPTS)}, got {self.intercepts!r}; a support vector machine "
                "has one unpenalised intercept"
            )
        B = task_kernel_matrix(self.task_kernel, self.mu, self.graph, self.tasks_)
        if self.length_scale is None and kernel == "linear":
            self.length_scale_ = np.ones(1)
        else:
            self.length_scale_ = self._length_scale(self.length_scale, cells)
        K = kernel_matrix(kernel, self.X_fit_, self.X_fit_, self.length_scale_)
        if self.intercepts == "coupled":
            K += 1.0
        totals = self._totals(cells)
        costs = (weights_of(self.task_weighting, totals) / totals)[cells.tasks] * cells.weights / alpha
        covariance = cell_covariance(cells, [B], [K])
        a, b = self._solve(covariance, cells.values, costs, epsilon)
        self.dual_gap_ = alpha * self._gap(covariance @ a, a, b, cells.values, costs, epsilon)
        self.n_support_ = np.bincount(cells.tasks[a != 0.0], minlength=cells.n_tasks)
        self.task_kernel_ = B
        dual = cells.spread(a)
        offset = np.full(cells.n_tasks, b)
        if self.intercepts == "coupled":
            offset += (B @ dual).sum(axis=1)
        self._relations: dict[str, Relation] | None = None
        self._remember([kernel], [self.length_scale_], [B], dual, offset)

    def _solve(self, covariance: Floats, y: Floats, costs: Floats, epsilon: float) -> tuple[Floats, float]:
        """Return the dual coefficients of the cells and the intercept."""
        from sklearn.svm import SVC, SVR

        settings = {"kernel": "precomputed", "C": 1.0, "tol": float(self.tol), "max_iter": int(self.max_iter)}
        if self.kind == "regression":
            machine = SVR(epsilon=epsilon, **settings)
        else:
            if not np.isin(y, (0.0, 1.0)).all():
                raise InputError('y must be 0 or 1 with kind="classification"; code the classes so')
            if y.min() == y.max():
                raise InputError(f'y has only the class {y[0]:g}; kind="classification" needs labels of both')
            machine = SVC(**settings)
        machine.fit(covariance, y, sample_weight=costs)
        a = np.zeros(len(y))
        a[machine.support_] = machine.dual_coef_[0]
        self.n_iter_ = int(np.max(machine.n_iter_))
        return a, float(machine.intercept_[0])

    def _gap(self, f: Floats, a: Floats, b: float, y: Floats, costs: Floats, epsilon: float) -> float:
        """Return the objective minus the dual objective, both divided by alpha."""
        square = float(a @ f)
        if self.kind == "regression":
            losses = np.maximum(np.abs(y - f - b) - epsilon, 0.0)
            dual = float(a @ y) - epsilon * float(np.abs(a).sum())
        else:
            losses = np.maximum(1.0 - (2.0 * y - 1.0) * (f + b), 0.0)
            dual = float(np.abs(a).sum())
        return max(float(costs @ losses) + square - dual, 0.0)

    def predict(self, X: Any, tasks: Any = None) -> Floats:
        """Return the prediction: a number, or class 0 or 1; shapes as of :meth:`task_scores`."""
        scores = self.task_scores(X, tasks)
        return (scores > 0).astype(np.float64) if self.kind == "classification" else scores

    def _quality(self, block: Block, margin: Floats) -> Floats:
        if self.kind == "regression":
            return super()._quality(block, margin)
        return np.asarray(block.weights @ ((margin > 0) == (block.Y > 0.5)) / block.total)

    @property
    def relations_(self) -> dict[str, Relation]:
        """Covariance, correlation and tree of the tasks; worked out when it is asked for."""
        check_is_fitted(self)
        if self._relations is None:
            about = "B of the kernel B_st k(x, z): how the functions of the tasks vary together."
            self._relations = task_relations(self.task_kernel_, self.tasks_, about)
        return self._relations
