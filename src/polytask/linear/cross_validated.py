"""Multi-task models whose strength is chosen by cross-validation within tasks (``path_cv.py`` says how).

Each takes the parameters of the model of the same name without CV but ``alpha``, those that have a
default of their own aside; :class:`~polytask.linear.path_cv.PathCV` takes any model as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

from polytask.linear.block_sparse import BlockSparse
from polytask.linear.mean_regularised import MeanRegularised
from polytask.linear.path_cv import CrossValidatedEstimator
from polytask.linear.paths import PathEstimator
from polytask.linear.simultaneous_lasso import SimultaneousLasso
from polytask.linear.task_lasso import TaskLasso
from polytask.linear.trace_norm import TraceNorm


class _CrossValidated(CrossValidatedEstimator):
    """The parameters that all models have (abstract)."""

    _kind: ClassVar[type[PathEstimator]]

    def __init__(
        self,
        alphas: Any = None,
        *,
        n_alphas: int = 100,
        eps: float = 0.01,
        cv: Any = None,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
    ) -> None:
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.eps = eps
        self.cv = cv
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _plain(self) -> PathEstimator:
        known = self._kind._get_param_names()
        return self._kind(**{name: value for name, value in self.get_params(deep=False).items() if name in known})


class BlockSparseCV(_CrossValidated):
    """:class:`~polytask.linear.block_sparse.BlockSparse` with its ``alpha`` chosen by cross-validation within tasks.

    With squared loss, one input matrix and no missing label this is scikit-learn's ``MultiTaskLassoCV``.

    Parameters
    ----------
    alphas
        Strengths to try, positive; None: ``n_alphas`` of them at equal ratios, from the smallest at which
        all coefficients are 0 to ``eps`` times that.
    n_alphas, eps
        See ``alphas``.
    cv
        None (5) or a number of folds: the rows of each task, and of each class of it, are dealt out in
        order; rows with targets of several tasks stay together. A splitter of scikit-learn, where stratified ones
        keep the shares of the tasks. Or pairs of row numbers to train and to validate on.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter
        As of the model.

    Attributes
    ----------
    alpha_ : float
        The strength with the least mean of ``mse_path_`` over the folds.
    alphas_ : ndarray of shape (n_alphas,)
        Strengths tried, in descending order.
    mse_path_ : ndarray of shape (n_alphas, n_folds)
        Mean over tasks of the squared error (of the deviance, with other losses) on the rows of each fold.
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of the model, fitted with ``alpha_`` to all rows.
    estimator_ : BlockSparse
        That model.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 5))
    >>> Y = X[:, :2] @ [[1.0, -2.0], [0.3, 0.0]] + 0.1 * rng.normal(size=(60, 2))
    >>> model = BlockSparseCV(cv=4).fit(X, Y)
    >>> model.mse_path_.shape
    (100, 4)
    >>> bool(model.alpha_ == model.alphas_[model.mse_path_.mean(axis=1).argmin()])
    True
    """

    _kind = BlockSparse


class TaskLassoCV(_CrossValidated):
    """:class:`~polytask.linear.task_lasso.TaskLasso` with its ``alpha`` chosen by cross-validation within tasks.

    Parameters and attributes are those of :class:`BlockSparseCV`; a ridge is had with
    ``PathCV(TaskLasso(ridge=…))``.
    """

    _kind = TaskLasso


class SimultaneousLassoCV(_CrossValidated):
    """:class:`~polytask.linear.simultaneous_lasso.SimultaneousLasso` with its ``alpha`` chosen within tasks.

    Parameters and attributes are those of :class:`BlockSparseCV`; a ridge is had with
    ``PathCV(SimultaneousLasso(ridge=…))``.
    """

    _kind = SimultaneousLasso


class TraceNormCV(_CrossValidated):
    """:class:`~polytask.linear.trace_norm.TraceNorm` with its ``alpha`` chosen by cross-validation within tasks.

    Parameters and attributes are those of :class:`BlockSparseCV`, and ``rank_``, ``components_`` and
    ``relations_`` of the model.
    """

    _kind = TraceNorm


class MeanRegularisedCV(_CrossValidated):
    """:class:`~polytask.linear.mean_regularised.MeanRegularised` with its ``alpha`` chosen within tasks.

    Parameters and attributes are those of :class:`BlockSparseCV`, ``mu`` and ``common_`` those of the model.
    Without ``alphas`` the path begins where about a tenth is left of the coefficients without a penalty.
    """

    _kind = MeanRegularised
    takes_multinomial = False

    def __init__(
        self,
        alphas: Any = None,
        mu: float = 0.1,
        *,
        n_alphas: int = 100,
        eps: float = 1e-5,
        cv: Any = None,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-8,
        max_iter: int = 100,
    ) -> None:
        rest = {"epsilon": epsilon, "task_weighting": task_weighting, "fit_intercept": fit_intercept}
        super().__init__(alphas, n_alphas=n_alphas, eps=eps, cv=cv, loss=loss, tol=tol, max_iter=max_iter, **rest)
        self.mu = mu
