"""Kernel ridge regression of several tasks with a kernel over inputs times a kernel over tasks.

    min_{f, b}  sum_t c_t / n_t sum_{i in t} 1/2 (y_it - f_t(x_i) - b_t)²  +  alpha / 2 ||f||²,

    K((x, s), (z, t)) = B_st k(x, z),        f_t(x) = sum_j B_{t t_j} k(x, x_j) a_j,   ||f||² = a^T K a

B: (T, T) positive semidefinite. With k(x, z) = x^T z the penalty is alpha / 2 tr(W^T B^-1 W): the
task kernel "mean" gives MeanRegularised, "graph" GraphRegularised, "identity" ridge of every task alone.
The dual coefficients solve (K + alpha S^-1) a + E b = y, E^T a = 0 with S = diag(c_t / n_t) and the
indicators E of the tasks: by one eigendecomposition for the rows and one for the tasks where every row
has every label, else by one Cholesky factor.

"learned": B is learned with the functions,

    min_B  alpha / 2 ||f||_B²  over positive semidefinite B with tr B = T,

which is reached at B = T C^1/2 / tr C^1/2 with C_st = <f_s, f_t> = alpha_s^T K alpha_t, where alpha_s
are the coefficients of f_s, and then equals alpha / (2 T) (tr C^1/2)². Since the functions live in the
span of the labelled rows, this is MTRL with the rows of a factor of K as inputs; it is solved by
proximal steps with a duality gap, not by alternating, which stalls.

Evgeniou, Micchelli & Pontil, Learning multiple tasks with kernel methods, JMLR 2005; Zhang & Yeung,
A convex formulation for learning task relationships in multi-task learning, UAI 2010.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import warn_unconverged
from polytask.linear.kernel_machine import KernelMachine, task_kernel_matrix
from polytask.linear.kernels import Kernel, check_kernel, kernel_matrix
from polytask.linear.layout import weights_of
from polytask.linear.mean_regularised import INTERCEPTS
from polytask.linear.moments import Column, gather
from polytask.linear.parameters import positive
from polytask.linear.penalised import root_covariance, task_relations
from polytask.linear.solvers.task_kernel import Cells, solve_with_intercepts, task_kernel_system

_RANK = 1e-12  # of the largest eigenvalue of the kernel matrix: directions below it are left out


class TaskKernelRidge(KernelMachine):
    """Kernel ridge regression of several tasks (see the module for the formula).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    task_kernel
        B: ``"mean"``: (1 1^T + mu I) / (1 + mu), tasks drawn to their mean; ``"graph"``: (Lap + mu I)^-1, tasks
        drawn together along the edges of ``graph``; ``"identity"``: every task alone; ``"learned"``: learned
        with the functions, trace T; or a positive semidefinite matrix in the order of ``tasks_``.
    mu
        How independent the tasks are (``"mean"``: 0 … inf; ``"graph"``: positive; otherwise not used).
    graph
        Edges of the graph, as of :class:`~polytask.linear.graph_regularised.GraphRegularised`.
    kernel
        k: ``"rbf"``, ``"matern32"``, ``"matern52"``, ``"linear"``, or a function of two arrays ``(n, d)`` and
        ``(m, d)`` that returns ``(n, m)``.
    length_scale
        Length scale of the inputs, or one per input; None: the square root of half the summed variances of
        the inputs, scikit-learn's ``gamma="scale"`` (1 for the linear kernel).
    task_weighting, fit_intercept
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    intercepts
        As of :class:`~polytask.linear.mean_regularised.MeanRegularised`: ``"own"``, ``"coupled"`` (a common
        one, and 1 added to the kernel) or ``"common"``; a learned task kernel has own ones.
    tol
        A learned task kernel is found to a duality gap of ``tol`` times the objective at f = 0; otherwise the
        solution is exact.
    max_iter
        Largest number of proximal steps of a learned task kernel.

    Attributes
    ----------
    dual_coef_ : ndarray of shape (n_tasks, n_rows)
        a, 0 where a row has no label of the task.
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
        Proximal steps (1 where B is given).
    tasks_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> Y = np.column_stack([np.sin(X[:, 0]), np.sin(X[:, 0]) + 2.0])
    >>> Y[20:, 1] = np.nan                       # the second task is known on one side only
    >>> model = TaskKernelRidge(alpha=1e-4, mu=0.01).fit(X, Y)
    >>> model.predict([[2.0]]).round(1)          # sin(2) = 0.9
    array([[0.9, 2.9]])
    """

    def __init__(
        self,
        alpha: float = 0.01,
        *,
        task_kernel: Any = "mean",
        mu: float = 0.1,
        graph: Any = None,
        kernel: Kernel = "rbf",
        length_scale: Any = None,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        intercepts: str = "own",
        tol: float = 1e-6,
        max_iter: int = 10_000,
    ) -> None:
        self.alpha = alpha
        self.task_kernel = task_kernel
        self.mu = mu
        self.graph = graph
        self.kernel = kernel
        self.length_scale = length_scale
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.intercepts = intercepts
        self.tol = tol
        self.max_iter = max_iter

    def _lends(self) -> bool:
        return self.intercepts != "own"

    def _fit_cells(self, cells: Cells) -> None:
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        kernel = check_kernel(self.kernel)
        if self.intercepts not in INTERCEPTS:
            raise InputError(f"intercepts must be one of {', '.join(INTERCEPTS)}, got {self.intercepts!r}")
        learned = isinstance(self.task_kernel, str) and self.task_kernel == "learned"
        intercepts = self.intercepts if self.fit_intercept else "none"
        if learned and intercepts in ("coupled", "common"):
            raise InputError(
                f'intercepts="{intercepts}" does not go with task_kernel="learned"; use intercepts="own", or '
                'task_kernel="mean"'
            )
        totals = self._totals(cells)
        weights = (weights_of(self.task_weighting, totals) / totals)[self._active]
        self._relations: dict[str, Relation] | None = None
        self.n_iter_, self.dual_gap_ = 1, 0.0
        self.length_scale_ = np.ones(1)
        if not learned:
            self.task_kernel_ = task_kernel_matrix(self.task_kernel, self.mu, self.graph, self.tasks_)
        if cells.n_tasks == 0:
            self.task_kernel_ = np.zeros((len(self.tasks_),) * 2) if learned else self.task_kernel_
            self._remember([], [], [], np.zeros((0, 0)), np.zeros(0))
            return
        if self.length_scale is not None or kernel != "linear":
            self.length_scale_ = self._length_scale(self.length_scale, cells)
        K = kernel_matrix(kernel, self.X_fit_, self.X_fit_, self.length_scale_)
        if intercepts == "coupled":
            K += 1.0  # every task has an offset that is penalised like its function
        if learned:
            self.task_kernel_ = self._among_all(self._learn(cells, K, weights, alpha))
        B = self._among_active(self.task_kernel_)
        system = task_kernel_system(cells, [B], [K], alpha / (weights[cells.tasks] * cells.weights))
        a, offset = solve_with_intercepts(system, cells, intercepts)
        dual = cells.spread(a)
        if intercepts == "coupled":
            offset = offset + (B @ dual).sum(axis=1)
        self._remember([kernel], [self.length_scale_], [B], dual, offset)

    def _learn(self, cells: Cells, K: Floats, weights: Floats, alpha: float) -> Floats:
        """Return the best B of trace T: MTRL with the rows of a factor of K as inputs."""
        from polytask.linear.penalties.spectral import SquaredTraceNorm
        from polytask.linear.solvers.losses import TaskLosses
        from polytask.linear.solvers.proximal import solve_proximal

        T = cells.n_tasks
        values, vectors = np.linalg.eigh(K)
        kept = values > _RANK * max(float(values[-1]), 1e-300)
        if not kept.any():
            return np.eye(T)
        features = vectors[:, kept] * np.sqrt(values[kept])
        ends = [*cells.starts[1:], len(cells.rows)]
        columns = [
            Column(cells.rows[start:end], cells.values[start:end], cells.weights[start:end])
            for start, end in zip(cells.starts, ends, strict=True)
        ]
        losses = TaskLosses(
            gather(features, columns),
            logistic=np.zeros(T, dtype=np.bool_),
            weights=weights * cells.totals(),
            n_features=features.shape[1],
            fit_intercept=bool(self.fit_intercept),
        )
        found = solve_proximal(losses, [SquaredTraceNorm(alpha / T)], tol=float(self.tol), max_steps=int(self.max_iter))
        # the exact solution for the B of these functions costs no more than they do, so the gap holds for it
        self.n_iter_, self.dual_gap_ = found.steps, found.gap
        if found.gap > max(found.bound, 1e-12):
            limit = int(self.max_iter)
            warn_unconverged("TaskKernelRidge", found.gap, found.bound, "a duality gap of", limit)
        return T * root_covariance(found.W)

    @property
    def relations_(self) -> dict[str, Relation]:
        """Covariance, correlation and tree of the tasks; worked out when it is asked for."""
        check_is_fitted(self)
        if self._relations is None:
            about = "B of the kernel B_st k(x, z): how the functions of the tasks vary together."
            self._relations = task_relations(self.task_kernel_, self.tasks_, about)
        return self._relations
