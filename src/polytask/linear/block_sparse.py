"""Row-sparse multi-task model: a feature is used by all tasks or by none.

    min_{W, b}  sum_t c_t / n_t sum_{i in t} loss_t(y_it, x_i^T w_t + b_t)  +  alpha sum_j ||w^j||_2

W: (T tasks, d features), w^j = W[:, j]; squared loss 1/2 (y - z)², logistic log(1 + e^z) - y z.

Obozinski, Taskar & Jordan, Joint covariate selection and joint subspace selection for multiple
classification problems, Statistics and Computing 2010; Argyriou, Evgeniou & Pontil, Convex
multi-task feature learning, Machine Learning 2008.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from polytask.core.data import Ints
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import warn_unconverged
from polytask.linear.layout import Layout, weights_of
from polytask.linear.moments import MomentsOnly, is_sparse, totals_of
from polytask.linear.parameters import positive
from polytask.linear.paths import Path, PathEstimator, given_levels, level_grid
from polytask.linear.penalised import features_in_use
from polytask.linear.penalties.block import RowNorm
from polytask.linear.solvers.losses import TaskLosses
from polytask.linear.solvers.proximal import solve_proximal
from polytask.linear.solvers.row_sparse import Solution, solve_row_sparse
from polytask.linear.solvers.shared_design import SharedDesign, largest_alpha, solve_shared, solve_shared_path


@dataclass(frozen=True)
class _Shared:
    """Tasks with squared loss on the same rows: their design, their numbers ``(k,)`` and their weight c."""

    design: SharedDesign
    outputs: Ints
    weight: float


class BlockSparse(PathEstimator):
    """Linear models of several tasks that use the same few features (l1/l2, "group lasso across tasks").

    Minimises ``sum_t c_t mean_loss_t + alpha sum_j ||w^j||_2`` (see the module for the formula).
    With squared loss, one input matrix and no missing label this is scikit-learn's
    ``MultiTaskLasso`` with the same ``alpha``; with one task it is ``Lasso``.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    loss
        ``"squared"``, ``"logistic"`` (targets 0 and 1), ``"huber"`` (squared near the target, linear
        farther away, for targets with outliers), ``"multinomial"`` (K classes: K rows of coefficients
        that share the norm of each feature), or one of them per task (a sequence in the order of
        ``tasks_``, or a mapping from task label). All kinds may be learned together.
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
        With multinomial tasks one row per class, ``(n_outputs, n_features)``; their names are ``outputs_``.
    intercept_ : ndarray of shape (n_tasks,)
    dual_gap_ : float
        Objective minus a lower bound of its minimum.
    n_iter_ : int
        Passes over the features (proximal steps with multinomial loss).
    tasks_ : ndarray of shape (n_tasks,)
        Task labels (column numbers where ``tasks`` was not given).
    logistic_ : ndarray of shape (n_tasks,)
        Which tasks have logistic loss.
    outputs_ : ndarray
        Names of the rows of ``coef_``: the tasks, or ``task=class``.
    classes_ : dict
        The classes of each multinomial task.

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

    takes_sparse = True
    takes_multinomial = True

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

    def _fit(self, X: Floats, layout: Layout) -> None:
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        T, d = len(self.outputs_), X.shape[1]
        start = getattr(self, "coef_", None) if self.warm_start else None
        if start is not None and start.shape != (T, d):
            start = None
        tol, limit = float(self.tol), int(self.max_iter)
        shared = self._shared(layout)
        if shared is not None:
            own = None if start is None else start[shared.outputs]
            solved = solve_shared(shared.design, alpha / shared.weight, tol=tol, max_sweeps=limit, start=own)
            W, b = np.zeros((T, d)), np.zeros(T)
            W[shared.outputs], b[shared.outputs] = solved.W, solved.intercept
            found = Solution(W, b, shared.weight * solved.gap, shared.weight * solved.bound, solved.passes)
        else:
            losses = self._losses(layout.blocks, T, d, fit_intercept=self.fit_intercept)
            found = _solve(losses, alpha, tol, limit, start)
        self.coef_ = found.W
        self.intercept_ = found.intercept
        self.dual_gap_ = found.gap
        self.n_iter_ = found.passes
        if found.gap > found.bound:
            warn_unconverged("BlockSparse", found.gap, found.bound, "a duality gap of", limit)

    @property
    def relations_(self) -> dict[str, Relation]:
        """The coefficients of the features in use."""
        check_is_fitted(self)
        about = "Coefficients of the features that the tasks use."
        return {"features in use": features_in_use(self, self.coef_, about)}

    def alpha_max(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> float:
        """Return the smallest ``alpha`` at which all coefficients are 0; arguments as of :meth:`fit`."""
        X, layout = self._begin(X, y, tasks, sample_weight)
        return self._top(X, layout)

    def _top(self, X: Any, layout: Layout) -> float:
        shared = self._shared(layout)
        if shared is not None:
            return shared.weight * largest_alpha(shared.design)
        losses = self._losses(layout.blocks, len(self.outputs_), X.shape[1], fit_intercept=self.fit_intercept)
        return _largest_alpha(losses)

    def _path(self, X: Any, layout: Layout, alphas: Any, n_alphas: int = 0, eps: float = 0.0) -> Path:
        T, n_features = len(self.outputs_), X.shape[1]
        tol, limit = float(self.tol), int(self.max_iter)
        shared = self._shared(layout)
        losses: TaskLosses | None = None
        if shared is not None:
            top = shared.weight * largest_alpha(shared.design)
        else:
            losses = self._losses(layout.blocks, T, n_features, fit_intercept=self.fit_intercept)
            top = _largest_alpha(losses)
        levels = given_levels(alphas) if alphas is not None else level_grid(top, n_alphas, eps)
        coefs, intercepts = np.zeros((len(levels), T, n_features)), np.zeros((len(levels), T))
        if shared is not None:
            design, c, out = shared.design, shared.weight, shared.outputs
            every = len(out) == T
            part = coefs if every else np.zeros((len(levels), len(out), n_features))
            gaps, _ = solve_shared_path(design, levels / c, tol=tol, max_sweeps=limit, coefs=part)
            if not every:
                coefs[:, out] = part
            intercepts[:, out] = [design.intercepts(W) for W in part]
            gaps *= c
            bound = 0.5 * c * tol * design.total
        else:
            assert losses is not None
            gaps, bound, start = np.zeros(len(levels)), 0.0, None
            for number, alpha in enumerate(levels.tolist()):
                solved = _solve(losses, alpha, tol, limit, start)
                start, bound = solved.W, solved.bound
                coefs[number], intercepts[number], gaps[number] = solved.W, solved.intercept, solved.gap
        worst = float(gaps.max(initial=0.0))
        if worst > bound:
            warn_unconverged("BlockSparse.path", worst, bound, "a duality gap of", limit)
        if self._idle is not None:
            coefs[:, self._idle.rows] = 0.0
            intercepts[:, self._idle.rows] = self._idle.intercepts
        return Path(levels, coefs, intercepts, gaps)

    def _shared(self, layout: Layout) -> _Shared | None:
        """Return the tasks as ones on a shared design; None: losses, rows or weights differ, or X is sparse."""
        if not self._squared():
            return None
        totals = np.zeros(len(self.outputs_))
        if self._idle is not None:
            totals[self._idle.rows] = self._idle.totals
        blocks = layout.blocks
        if isinstance(blocks, MomentsOnly):
            moments = blocks.moments
            outputs = np.flatnonzero(moments.n > 0)
            if len(outputs) == 0 or np.ptp(moments.pattern[outputs]) > 0:
                return None
        elif len(blocks) == 1 and not is_sparse(blocks[0].X):
            outputs = blocks[0].outputs
        else:
            return None
        c = weights_of(self.task_weighting, totals_of(blocks, totals))[outputs]
        if np.ptp(c) > 0.0:
            return None
        if isinstance(blocks, MomentsOnly):
            moments = blocks.moments if len(outputs) == blocks.moments.n_tasks else blocks.moments.tasks(outputs)
            design = SharedDesign.of_moments(moments, fit_intercept=self.fit_intercept)
        else:
            design = SharedDesign.of_block(blocks[0], fit_intercept=self.fit_intercept)
        return _Shared(design, outputs, float(c[0]))


def _solve(losses: TaskLosses, alpha: float, tol: float, limit: int, start: Floats | None) -> Solution:
    if losses.separable:
        return solve_row_sparse(losses, alpha, tol=tol, max_passes=limit, start=start)
    parts = None if start is None else start[None]
    found = solve_proximal(losses, [RowNorm(alpha)], tol=tol, max_steps=limit, start=parts)
    return Solution(found.W, found.intercept, found.gap, found.bound, found.steps)


def _largest_alpha(losses: TaskLosses) -> float:
    return RowNorm.dual_norm(losses.at(np.zeros((losses.n_tasks, losses.n_features))).gradient)
