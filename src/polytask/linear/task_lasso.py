"""Lasso for several tasks at once: every task its own features.

    min_{W, b}  sum_t c_t / n_t sum_{i in t} loss_t(y_it, x_i^T w_t + b_t)  +  alpha sum_tj |w_tj|  +  ridge / 2 ||W||²

W: (T tasks, d features); squared loss 1/2 (y - z)², logistic log(1 + e^z) - y z. The tasks share
nothing but alpha: it is what the formulations that couple tasks are compared with.

Tibshirani, Regression shrinkage and selection via the lasso, JRSS-B 1996; Zou & Hastie,
Regularization and variable selection via the elastic net, JRSS-B 2005.
"""

from __future__ import annotations

from typing import Any

from polytask.linear.feature_norm import FeatureNormEstimator
from polytask.linear.parameters import positive
from polytask.linear.penalties.block import EntryNorm


class TaskLasso(FeatureNormEstimator):
    """Sparse linear models of several tasks, each with features of its own (see the module for the formula).

    With squared loss and one input matrix this is scikit-learn's ``Lasso`` for every column of y, and
    with a ridge ``ElasticNet(alpha + ridge, l1_ratio=alpha / (alpha + ridge))``.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    ridge
        Strength of the squared penalty, at least 0.
    loss
        ``"squared"``, ``"logistic"`` (targets 0 and 1), ``"huber"`` (squared near the target, linear
        farther away), ``"multinomial"`` (K classes: K rows of coefficients), or one of them per task (a
        sequence in the order of ``tasks_``, or a mapping from task label). All kinds may be learned together.
    epsilon
        Where Huber's loss turns from squared to linear, in units of the scale of the task's targets
        (1.4826 times the median absolute deviation from their median); positive.
    task_weighting
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
    relations_ : dict of Relation
        ``"features in use"``: the coefficients of the features that some task uses.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 5))
    >>> W = np.array([[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0, 0.0]])
    >>> TaskLasso(alpha=0.1).fit(X, X @ W.T).coef_.round(1) + 0.0
    array([[ 0.9,  0. ,  0. ,  0. ,  0. ],
           [ 0. ,  0. , -1.9,  0. ,  0. ]])
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

    def _norm(self) -> EntryNorm:
        return EntryNorm(positive("alpha", self.alpha, "the strength of the penalty"))
