"""Convex multi-task feature learning: a feature covariance that all tasks share is learned with them.

    min_{W, b, D}  sum_t c_t mean_loss_t  +  alpha sum_t w_t^T D^-1 w_t,    D positive semidefinite, tr D <= 1

W: (T tasks, d features), D: (d, d). At the best D = (W^T W)^(1/2) / tr (W^T W)^(1/2) the penalty is
alpha ||W||_*², and that problem is solved exactly; alternating between W and D, as in the paper,
stalls above the optimum once D is nearly singular. The solution is that of the trace norm with
strength 2 alpha ||W||_*, so both trace the same path.

Argyriou, Evgeniou & Pontil, Convex multi-task feature learning, Machine Learning 2008.
"""

from __future__ import annotations

from typing import Any

from polytask.core.relation import Relation
from polytask.linear.penalised import PenalisedEstimator, feature_names, positive, root_covariance, task_relations
from polytask.linear.penalties.spectral import Penalty, SquaredTraceNorm


class MultiTaskFeatureLearning(PenalisedEstimator):
    """Linear models of several tasks under a common, learned feature covariance.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    covariance_ : ndarray of shape (n_features, n_features)
        D, of trace 1 (I / d when all coefficients are 0).
    relations_ : dict of Relation
        ``"feature covariance"``, and the covariance, correlation and tree of the tasks.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> Y = X[:, :1] * [[1.0, -2.0]] + 0.1 * rng.normal(size=(200, 2))
    >>> MultiTaskFeatureLearning(alpha=0.01).fit(X, Y).covariance_.round(1)[0, 0]
    np.float64(1.0)
    """

    def __init__(
        self,
        alpha: float = 0.01,
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
        return [SquaredTraceNorm(2.0 * positive("alpha", self.alpha, "the strength of the penalty"))]

    def _describe(self) -> None:
        self.covariance_ = root_covariance(self.coef_.T)

    def _relate(self) -> dict[str, Relation]:
        W = self.coef_
        features = feature_names(self, W.shape[1])
        return {
            "feature covariance": Relation(
                "covariance", self.covariance_, features, features, "Directions in which all tasks' coefficients vary."
            ),
            **task_relations(root_covariance(W), self.outputs_, "The same on the side of the tasks: trace 1."),
        }
