"""Low-rank multi-task model: the tasks' coefficients lie in a few common directions.

    min_{W, b}  sum_t c_t / n_t sum_{i in t} loss_t(y_it, x_i^T w_t + b_t)  +  alpha ||W||_*

W: (T tasks, d features), ||W||_* the sum of its singular values; squared loss 1/2 (y - z)², logistic
log(1 + e^z) - y z. The penalty is the convex envelope of the rank; from alpha = ||gradient at 0||_2
(largest singular value) on, W = 0.

Ji & Ye, An accelerated gradient method for trace norm minimization, ICML 2009; Pong, Tseng, Ji & Ye,
Trace norm regularization: reformulations, algorithms, and multi-task learning, SIAM J. Optim. 2010.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.core.relation import Relation
from polytask.linear.penalised import (
    PenalisedEstimator,
    feature_names,
    gradient_at_zero,
    names_of,
    positive,
    root_covariance,
)
from polytask.linear.penalised import task_relations as relations_of
from polytask.linear.penalties.spectral import Penalty
from polytask.linear.penalties.spectral import TraceNorm as TraceNormPenalty
from polytask.linear.solvers.losses import TaskLosses


class TraceNorm(PenalisedEstimator):
    """Linear models of several tasks whose coefficients span few directions (trace or nuclear norm).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    loss, epsilon, task_weighting, fit_intercept
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    tol
        Stop when the duality gap is at most ``tol`` times the objective at W = 0.
    max_iter
        Largest number of proximal steps.
    warm_start
        Start from the coefficients of the previous fit.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
    intercept_ : ndarray of shape (n_tasks,)
    rank_ : int
        Number of directions in use.
    components_ : ndarray of shape (rank, n_features)
        The directions, orthonormal, most used first.
    relations_ : dict of Relation
        ``"loadings"`` of the tasks on the directions, ``"directions"`` in terms of the features, and the
        covariance, correlation and tree of the tasks that the penalty implies.
    dual_gap_ : float
        Objective minus a lower bound of its minimum.
    n_iter_ : int
        Proximal steps.
    tasks_, logistic_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 5))
    >>> Y = X @ rng.normal(size=(5, 1)) * [[1.0, -2.0, 3.0]] + 0.1 * rng.normal(size=(100, 3))
    >>> TraceNorm(alpha=0.1).fit(X, Y).rank_
    1
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - same for all shapes
        return [TraceNormPenalty(positive("alpha", self.alpha, "the strength of the penalty"))]

    def _describe(self) -> None:
        _, s, Vt = np.linalg.svd(self.coef_, full_matrices=False)
        self.rank_ = int((s > 1e-8 * max(float(s[0]), 1e-300)).sum())
        self.components_ = Vt[: self.rank_]

    def _relate(self) -> dict[str, Relation]:
        W = self.coef_
        tasks, features = names_of(self.outputs_), feature_names(self, W.shape[1])
        factors = tuple(f"direction {number + 1}" for number in range(self.rank_))
        return {
            "loadings": Relation(
                "loadings",
                self.components_ @ W.T,
                factors,
                tasks,
                "How much of each common direction a task uses.",
            ),
            "directions": Relation(
                "coefficients", self.components_.T, features, factors, "Unit vectors that the tasks' coefficients mix."
            ),
            **relations_of(
                root_covariance(W), self.outputs_, "The matrix (W W^T)^(1/2) / trace behind the penalty: trace 1."
            ),
        }

    def alpha_max(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> float:
        """Return the smallest ``alpha`` at which all coefficients are 0; arguments as of :meth:`fit`."""
        return self._alpha_max(X, y, tasks, sample_weight)

    def strongest(self, losses: TaskLosses) -> float:
        return TraceNormPenalty.dual_norm(gradient_at_zero(losses))
