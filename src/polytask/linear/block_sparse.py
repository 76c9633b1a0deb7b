"""Row-sparse multi-task model: a feature is used by all tasks or by none.

    min_{W, b}  sum_t c_t / n_t sum_{i in t} loss_t(y_it, x_i^T w_t + b_t)  +  alpha sum_j ||w^j||_2

W: (T tasks, d features), w^j = W[:, j]; squared loss 1/2 (y - z)², logistic log(1 + e^z) - y z.

Obozinski, Taskar & Jordan, Joint covariate selection and joint subspace selection for multiple
classification problems, Statistics and Computing 2010; Argyriou, Evgeniou & Pontil, Convex
multi-task feature learning, Machine Learning 2008.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator, warn_unconverged
from polytask.linear.layout import Layout
from polytask.linear.penalties.block import RowNorm
from polytask.linear.solvers.row_sparse import solve_row_sparse


class BlockSparse(TaskEstimator):
    """Linear models of several tasks that use the same few features (l1/l2, "group lasso across tasks").

    Minimises ``sum_t c_t mean_loss_t + alpha sum_j ||w^j||_2`` (see the module for the formula).
    With squared loss, one input matrix and no missing label this is scikit-learn's
    ``MultiTaskLasso`` with the same ``alpha``; with one task it is ``Lasso``.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    loss
        ``"squared"``, ``"logistic"`` (targets 0 and 1), or one of them per task (a sequence in the
        order of ``tasks_``, or a mapping from task label). Both kinds may be learned together.
    task_weights
        c_t: ``"equal"`` (1: every task counts the same), ``"examples"`` (n_t / mean n: every label
        counts the same) or one positive number per task.
    fit_intercept
        Whether each task has an intercept. It is never penalised.
    tol
        Stop when the duality gap is at most ``tol`` times the objective at W = 0.
    max_iter
        Largest number of passes over the features.
    warm_start
        Start from the coefficients of the previous fit.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
    intercept_ : ndarray of shape (n_tasks,)
    dual_gap_ : float
        Objective minus a lower bound of its minimum.
    n_iter_ : int
        Passes over the features.
    tasks_ : ndarray of shape (n_tasks,)
        Task labels (column numbers where ``tasks`` was not given).
    logistic_ : ndarray of shape (n_tasks,)
        Which tasks have logistic loss.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 5))
    >>> y = X[:, :1] * [[1.0, -2.0]] + 0.1 * rng.normal(size=(100, 2))
    >>> y[::3, 1] = np.nan                       # a missing label
    >>> BlockSparse(alpha=0.1).fit(X, y).coef_.round(1)
    array([[ 0.9,  0. ,  0. ,  0. ,  0. ],
           [-1.9,  0. ,  0. ,  0. ,  0. ]])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        loss: Any = "squared",
        task_weights: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.loss = loss
        self.task_weights = task_weights
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _fit(self, X: Floats, layout: Layout) -> None:
        if not isinstance(self.alpha, Real) or not 0 < float(self.alpha) < np.inf:
            raise InputError(f"alpha must be a positive number, got {self.alpha!r}; it is the strength of the penalty")
        losses = self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept)
        start = getattr(self, "coef_", None) if self.warm_start else None
        if start is not None and start.shape != (losses.n_tasks, losses.n_features):
            start = None
        found = solve_row_sparse(
            losses, float(self.alpha), tol=float(self.tol), max_passes=int(self.max_iter), start=start
        )
        self.coef_ = found.W
        self.intercept_ = found.intercept
        self.dual_gap_ = found.gap
        self.n_iter_ = found.passes
        if found.gap > found.bound:
            warn_unconverged("BlockSparse", found.gap, found.bound, "a duality gap of", int(self.max_iter))

    def alpha_max(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> float:
        """Return the smallest ``alpha`` at which all coefficients are 0; arguments as of :meth:`fit`."""
        X, layout = self._begin(X, y, tasks, sample_weight)
        losses = self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept)
        return RowNorm.dual_norm(losses.at(np.zeros((losses.n_tasks, losses.n_features))).gradient)
