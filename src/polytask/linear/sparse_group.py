"""Sparse-group lasso across tasks: few features, and among the tasks of a feature few that use it.

    min_{W, b}  sum_t c_t mean_loss_t  +  alpha [ l1_ratio sum_tj |w_tj| + (1 - l1_ratio) sum_j ||w^j||_2 ]
                +  ridge / 2 ||W||²

W: (T tasks, d features), w^j = W[:, j]. l1_ratio = 1: every task its own features; 0: a feature is
used by all tasks or by none.

Friedman, Hastie & Tibshirani, A note on the group lasso and a sparse group lasso, 2010; Simon,
Friedman, Hastie & Tibshirani, A sparse-group lasso, J. Computational and Graphical Statistics 2013.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from polytask.core.errors import InputError
from polytask.linear.feature_norm import FeatureNormEstimator
from polytask.linear.parameters import positive
from polytask.linear.penalties.block import EntryNorm, FeatureNorm
from polytask.linear.penalties.sparse_group import SparseRowNorm


class SparseGroup(FeatureNormEstimator):
    """Linear models of several tasks that mostly, but not always, use the same few features (l1 + l1/l2).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    l1_ratio
        Share of the l1 penalty, 0 … 1. 1 is :class:`~polytask.linear.task_lasso.TaskLasso`, 0 is
        :class:`~polytask.linear.block_sparse.BlockSparse`.
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
    >>> W = np.array([[1.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    >>> SparseGroup(alpha=0.2).fit(X, X @ W.T).coef_ != 0
    array([[ True,  True, False, False],
           [ True, False, False, False],
           [ True,  True, False, False]])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        l1_ratio: float = 0.5,
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
        self.l1_ratio = l1_ratio
        self.ridge = ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _norm(self) -> FeatureNorm:
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        ratio = self.l1_ratio
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0 <= float(ratio) <= 1:
            raise InputError(f"l1_ratio must be a number from 0 to 1, got {ratio!r}; it is the share of the l1 penalty")
        if ratio == 1:
            return EntryNorm(alpha)
        return SparseRowNorm(alpha * float(ratio), alpha * (1.0 - float(ratio)))
