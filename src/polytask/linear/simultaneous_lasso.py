"""Simultaneous lasso: a feature is used by all tasks or by none, at a cost set by its largest coefficient.

    min_{W, b}  sum_t c_t mean_loss_t  +  alpha sum_j max_t |w_tj|  +  ridge / 2 ||W||²

W: (T tasks, d features). A feature in use costs the same whether one task or all use it to the
full, so several coefficients of a feature often have exactly the same size. It needs fewer rows
than the lasso where most of the tasks' features are common, and more where they are not.

Turlach, Venables & Wright, Simultaneous variable selection, Technometrics 2005; Negahban &
Wainwright, Simultaneous support recovery in high dimensions: benefits and perils of block
l1/linf-regularization, IEEE Trans. Information Theory 2011.
"""

from __future__ import annotations

from typing import Any

from polytask.linear.feature_norm import FeatureNormEstimator
from polytask.linear.parameters import positive
from polytask.linear.penalties.block import RowMaximum


class SimultaneousLasso(FeatureNormEstimator):
    """Linear models of several tasks that use the same few features to a similar extent (l1/linf).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
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
    >>> X = rng.normal(size=(100, 4))
    >>> Y = X[:, :1] * [[1.0, -1.2, 0.9]] + 0.1 * rng.normal(size=(100, 3))
    >>> SimultaneousLasso(alpha=1.0).fit(X, Y).coef_.round(2) + 0.0
    array([[ 0.65,  0.  ,  0.  ,  0.  ],
           [-0.65,  0.  ,  0.  ,  0.  ],
           [ 0.65,  0.  ,  0.  ,  0.  ]])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        ridge: float = 0.0,
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

    def _norm(self) -> RowMaximum:
        return RowMaximum(positive("alpha", self.alpha, "the strength of the penalty"))
