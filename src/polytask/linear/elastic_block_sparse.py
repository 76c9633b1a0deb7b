"""Elastic net across tasks: a feature is used by all tasks or by none, and correlated features together.

    min_{W, b}  sum_t c_t mean_loss_t  +  alpha sum_j ||w^j||_2  +  ridge / 2 ||W||²

W: (T tasks, d features), w^j = W[:, j]. The ridge makes the solution unique and stable where columns
of X are alike, of which l1/l2 alone picks one.

Zou & Hastie, Regularization and variable selection via the elastic net, JRSS-B 2005; Yuan & Lin, Model
selection and estimation in regression with grouped variables, JRSS-B 2006.
"""

from __future__ import annotations

from typing import Any

from polytask.linear.feature_norm import FeatureNormEstimator
from polytask.linear.parameters import positive
from polytask.linear.penalties.block import RowNorm


class ElasticBlockSparse(FeatureNormEstimator):
    """Linear models of several tasks that use the same features, with a ridge (l1/l2 + squared l2).

    With squared loss, one input matrix and no missing label this is scikit-learn's
    ``MultiTaskElasticNet(alpha + ridge, l1_ratio=alpha / (alpha + ridge))``.

    Parameters
    ----------
    alpha
        Strength of the l1/l2 penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    ridge
        Strength of the squared penalty, at least 0.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.task_lasso.TaskLasso`.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_, relations_
        As of :class:`~polytask.linear.task_lasso.TaskLasso`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 3))
    >>> X[:, 1] = X[:, 0]                        # two equal columns share their coefficients
    >>> Y = X[:, :1] * [[1.0, -2.0]]
    >>> ElasticBlockSparse(alpha=0.1, ridge=0.1).fit(X, Y).coef_.round(2) + 0.0
    array([[ 0.46,  0.46,  0.  ],
           [-0.92, -0.92,  0.  ]])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        ridge: float = 0.1,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.ridge = ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _norm(self) -> RowNorm:
        return RowNorm(positive("alpha", self.alpha, "the strength of the l1/l2 penalty"))
