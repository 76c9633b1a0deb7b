"""Alternating structure optimisation (ASO): free coefficients along h directions that all tasks share.

    w_t = u_t + Theta^T v_t,     Theta Theta^T = I

    min_{U, V, Theta, b}  sum_t c_t mean_loss_t  +  alpha / 2 sum_t ||u_t||²  +  ridge / 2 sum_t ||w_t||²

W: (T tasks, d features), Theta: (h, d). Only what lies outside the shared directions is penalised by
alpha: with the best v_t = Theta w_t it is alpha / 2 w_t^T (I - Theta^T Theta) w_t. Rounds: W given Theta
(every task alone, exact), then Theta = the h leading right singular vectors of W. The objective
never rises; the problem is not convex (see RelaxedClusters for its convex relaxation).
With squared losses of Hessians S_t and A_t = S_t + (alpha + ridge) I, inverted once, a round costs
O(h d²) per task (Woodbury):

    w_t = A_t^-1 b_t + Q_t (I / alpha - Theta Q_t)^-1 Theta A_t^-1 b_t,     Q_t = A_t^-1 Theta^T

h = 0 is ridge of strength alpha + ridge; h = min(d, T) leaves the ridge only.

Ando & Zhang, A framework for learning predictive structures from multiple tasks and unlabeled data,
JMLR 2005.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.alternating import alternate
from polytask.linear.estimator import TaskEstimator
from polytask.linear.layout import Layout
from polytask.linear.penalised import (
    count,
    feature_names,
    names_of,
    not_negative,
    positive,
    root_covariance,
    task_relations,
)
from polytask.linear.solvers.losses import Curvature, Point, TaskLosses, kinds_of
from polytask.linear.solvers.quadratic import solve_quadratic

_PRECISION = 1e-10  # of the gradient at W = 0, to which the coefficients for given directions are brought
_CORRECTIONS = 4
_LIFT = 1e-14


class AlternatingStructure(TaskEstimator):
    """Linear models of several tasks with a few free shared directions (ASO; see the module for the formula).

    Parameters
    ----------
    alpha
        Strength on what lies outside the shared directions, positive.
    n_directions
        h; no more than there are tasks and features are used.
    ridge
        Strength on all coefficients, not negative.
    loss, epsilon, task_weighting, fit_intercept
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    tol
        Stop when a round lowers the objective by at most ``tol`` of itself.
    max_iter
        Largest number of rounds.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
    components_ : ndarray of shape (h, n_features)
        Theta.
    own_coef_ : ndarray of shape (n_tasks, n_features)
        u_t.
    intercept_ : ndarray of shape (n_tasks,)
    objectives_ : ndarray of shape (n_iter_ + 1,)
        Objective before the first and after every round.
    relations_ : dict of Relation
        ``"loadings"`` v of the tasks, ``"directions"`` Theta, and covariance, correlation and tree of the tasks.
    n_iter_ : int
    tasks_, logistic_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 3))
    >>> Y = X[:, :1] * [[1.0, -2.0, 3.0]]
    >>> AlternatingStructure(alpha=1.0, n_directions=1, ridge=0.0).fit(X, Y).own_coef_.round(3).any()
    np.False_
    """

    takes_sparse = True

    def __init__(
        self,
        alpha: float = 0.1,
        n_directions: int = 2,
        *,
        ridge: float = 0.01,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        self.alpha = alpha
        self.n_directions = n_directions
        self.ridge = ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _fit(self, X: Floats, layout: Layout) -> None:
        self._check()
        self.solve(self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept))

    def _check(self) -> tuple[float, float, int]:
        alpha = positive("alpha", self.alpha, "the strength on what lies outside the shared directions")
        ridge = not_negative("ridge", self.ridge, "the strength on all coefficients")
        return alpha, ridge, count("n_directions", self.n_directions, "the number of shared directions", least=0)

    def solve(self, losses: TaskLosses) -> None:
        """Fit given losses of the tasks ``tasks_``, which is what :meth:`fit` does with those of its data."""
        alpha, ridge, wanted = self._check()
        T, d = losses.n_tasks, losses.n_features
        losses.require_grams()
        h = min(wanted, T, d)
        tasks = _TasksAlone(losses, alpha, ridge)
        state = {"theta": np.zeros((0, d))}

        def fit_tasks() -> float:
            point = tasks.fit(state["theta"], state.get("W"))
            state["W"], state["intercept"] = point.W, point.intercept
            return point.value + 0.5 * float((point.W * tasks.slope(point.W, state["theta"])).sum())

        def advance() -> float:
            _, _, Vt = np.linalg.svd(state["W"], full_matrices=False)
            state["theta"] = Vt[:h]
            return fit_tasks()

        self.objectives_ = alternate(
            fit_tasks(), advance, tol=float(self.tol), max_iter=int(self.max_iter), method="AlternatingStructure"
        )
        W, theta = state["W"], state["theta"]
        self.coef_, self.intercept_, self.components_ = W, state["intercept"], theta
        loadings = W @ theta.T
        self.own_coef_ = W - loadings @ theta
        self.n_iter_ = len(self.objectives_) - 1
        factors = tuple(f"direction {number + 1}" for number in range(h))
        self.relations_ = {
            "loadings": Relation(
                "loadings", loadings.T, factors, names_of(self.tasks_), "How much of each shared direction a task uses."
            ),
            "directions": Relation(
                "coefficients", theta.T, feature_names(self, d), factors, "Unit vectors that tasks may use freely."
            ),
            **task_relations(root_covariance(W), self.tasks_, "(W W^T)^(1/2) / trace of the coefficients."),
        }


class _TasksAlone:
    """Finds the best coefficients of every task for given directions, for squared losses from one inverse per Hessian.

    A solution is corrected by that of its residual; where rounding leaves too much of it (A_t is nearly
    singular along the directions) the systems are solved directly.
    """

    def __init__(self, losses: TaskLosses, alpha: float, ridge: float) -> None:
        self.losses, self.alpha, self.ridge = losses, alpha, ridge
        self.null = losses.at(np.zeros((losses.n_tasks, losses.n_features)))
        self.inverse: Curvature | None = None
        if losses.all_quadratic:
            curvature = losses.curvature(self.null)
            (pattern, scale), which = kinds_of(curvature)
            own = scale[:, None, None] * curvature.grams[pattern.astype(np.int64)]
            inverse = np.linalg.inv(own + (alpha + ridge) * np.eye(losses.n_features))
            self.inverse = Curvature(inverse, which, np.ones(losses.n_tasks))

    def slope(self, W: Floats, theta: Floats) -> Floats:
        """Return the gradient of the penalties, ``(T, d)``."""
        return np.asarray((self.alpha + self.ridge) * W - self.alpha * (W @ theta.T) @ theta)

    def fit(self, theta: Floats, start: Floats | None) -> Point:
        """Return the losses at the best coefficients for the directions ``theta`` ``(h, d)``."""
        if self.inverse is not None:
            point, bound = self.null, _PRECISION * float(np.abs(self.null.gradient).max(initial=0.0))
            for _ in range(_CORRECTIONS):
                rest = point.gradient + self.slope(point.W, theta)
                if float(np.abs(rest).max(initial=0.0)) <= bound:
                    return point
                point = self.losses.at(point.W - self._solve(self.inverse, rest, theta), point)
            start = point.W
        R = (self.alpha + self.ridge) * np.eye(self.losses.n_features) - self.alpha * theta.T @ theta
        found = solve_quadratic(self.losses, features=R, tol=_PRECISION, max_steps=100, start=start)
        return self.losses.at(found.W)

    def _solve(self, inverse: Curvature, right: Floats, theta: Floats) -> Floats:
        """Return (A_t - alpha Theta^T Theta)^-1 times the rows of ``right``, ``(T, d)``."""
        alone = inverse.times(right)
        along = np.matmul(inverse.grams, theta.T)  # Q, (K, d, h)
        inner = np.eye(len(theta)) / self.alpha - np.matmul(theta, along)
        lift = _LIFT * np.eye(len(theta)) / self.alpha  # corrected for, and keeps a singular system solvable
        bent = np.linalg.solve((inner + lift)[inverse.pattern], (alone @ theta.T)[:, :, None])
        return np.asarray(alone + np.matmul(along[inverse.pattern], bent)[:, :, 0])
