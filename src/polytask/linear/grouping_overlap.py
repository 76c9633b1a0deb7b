"""Learned task groups with overlap (GO-MTL): every task mixes a few of k latent tasks.

    W = A C,   A: (T tasks, k) sparse,  C: (k, d features) latent tasks

    min_{A, C, b}  sum_t c_t mean_loss_t  +  alpha sum_tj |A_tj|  +  ridge / 2 ||C||_F²

Two tasks are in a group when they use the same latent tasks; groups may overlap. Rounds: A given C
(a lasso of k coefficients per task, by coordinate descent on all tasks at once), C given A (one
linear system of size k d), the scale of each latent task against its use, and a step further in the
direction of the whole round. With logistic losses A and C take Newton steps. A latent task that
nobody uses any more is restarted along the steepest direction. Whatever would raise the objective is
not done, so it never rises; the problem is not convex. C starts from the leading right singular
vectors of ridge models of every task.

Kumar & Daumé III, Learning task grouping and overlap in multi-task learning, ICML 2012.
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
    root_covariance,
    task_relations,
)
from polytask.linear.solvers.losses import Point, TaskLosses
from polytask.linear.solvers.quadratic import solve_quadratic

_SWEEPS = 8
_HALVINGS = 30


class GroupingOverlap(TaskEstimator):
    """Linear models of several tasks as sparse mixtures of a few latent tasks (see the module for the formula).

    Parameters
    ----------
    n_latent
        k; no more than there are tasks are used.
    alpha
        Strength of the l1 penalty on A, not negative.
    ridge
        Strength of the squared penalty on C, not negative.
    start_ridge
        Strength of the ridge models from which C starts, not negative.
    loss, epsilon, task_weighting, fit_intercept
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    tol
        Stop when a round lowers the objective by at most ``tol`` of itself.
    max_iter
        Largest number of rounds.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        A C.
    mixing_ : ndarray of shape (n_tasks, k)
        A.
    components_ : ndarray of shape (k, n_features)
        C.
    intercept_ : ndarray of shape (n_tasks,)
    objectives_ : ndarray of shape (n_iter_ + 1,)
        Objective before the first and after every round.
    relations_ : dict of Relation
        ``"loadings"`` A, ``"latent tasks"`` C, and covariance, correlation and tree of the tasks.
    n_iter_ : int
    tasks_, logistic_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(80, 4))
    >>> C = np.array([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    >>> Y = X @ C.T @ np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    >>> (GroupingOverlap(2, alpha=0.01).fit(X, Y).mixing_ != 0).sum(axis=1)
    array([1, 1, 1, 1])
    """

    takes_sparse = True

    def __init__(
        self,
        n_latent: int = 3,
        *,
        alpha: float = 0.01,
        ridge: float = 0.01,
        start_ridge: float = 0.1,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 2000,
    ) -> None:
        self.n_latent = n_latent
        self.alpha = alpha
        self.ridge = ridge
        self.start_ridge = start_ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _fit(self, X: Floats, layout: Layout) -> None:
        self._check()
        self.solve(self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept))

    def _check(self) -> tuple[int, float, float, float]:
        return (
            count("n_latent", self.n_latent, "the number of latent tasks"),
            not_negative("alpha", self.alpha, "the strength of the l1 penalty on the mixtures"),
            not_negative("ridge", self.ridge, "the strength of the squared penalty on the latent tasks"),
            not_negative("start_ridge", self.start_ridge, "the strength of the ridge models it starts from"),
        )

    def solve(self, losses: TaskLosses) -> None:
        """Fit given losses of the tasks ``tasks_``, which is what :meth:`fit` does with those of its data."""
        k, alpha, ridge, start_ridge = self._check()
        losses.require_grams()
        T, d = losses.n_tasks, losses.n_features
        factors = _Factors(losses, min(k, T), alpha, ridge, start_ridge)
        self.objectives_ = alternate(
            factors.objective(),
            factors.advance,
            tol=float(self.tol),
            max_iter=int(self.max_iter),
            method="GroupingOverlap",
        )
        self.mixing_, self.components_ = factors.A, factors.C
        self.coef_ = factors.point.W
        self.intercept_ = factors.point.intercept
        self.n_iter_ = len(self.objectives_) - 1
        latent = tuple(f"latent task {number + 1}" for number in range(min(k, T)))
        self.relations_ = {
            "loadings": Relation(
                "loadings", self.mixing_.T, latent, names_of(self.tasks_), "How much of each latent task a task uses."
            ),
            "latent tasks": Relation(
                "coefficients", self.components_.T, feature_names(self, d), latent, "Coefficients of the latent tasks."
            ),
            **task_relations(root_covariance(self.coef_), self.tasks_, "(W W^T)^(1/2) / trace of the coefficients."),
        }


class _Factors:
    """A, C and the losses at A C, improved in turn."""

    def __init__(self, losses: TaskLosses, k: int, alpha: float, ridge: float, start_ridge: float) -> None:
        self.losses, self.alpha, self.ridge = losses, alpha, ridge
        T, d = losses.n_tasks, losses.n_features
        W = solve_quadratic(losses, features=start_ridge * np.eye(d), tol=1e-8, max_steps=100).W
        U, s, Vt = np.linalg.svd(W, full_matrices=True)
        r = min(k, T, d)
        # balanced halves of W; latent tasks beyond the number of features start at 0
        self.A, self.C = np.zeros((T, k)), np.zeros((k, d))
        self.A[:, :r] = U[:, :r] * np.sqrt(s[:r])
        self.C[:r] = np.sqrt(s[:r])[:, None] * Vt[:r]
        self.push = 0.5
        self.point: Point = losses.at(self.A @ self.C)

    def objective(self) -> float:
        return self.point.value + self._penalty(self.A, self.C)

    def _penalty(self, A: Floats, C: Floats) -> float:
        return float(self.alpha * np.abs(A).sum() + 0.5 * self.ridge * np.square(C).sum())

    def advance(self) -> float:
        before = self.A, self.C
        self._improve(self._mixing(self.A, self.C), self.C)
        self._improve(self.A, self._latent())
        self._balance()
        self._overshoot(*before)
        self._restart()
        return self.objective()

    def _overshoot(self, A: Floats, C: Floats) -> None:
        """Go on in the direction from (A, C), further every time that it has helped."""
        new_A, new_C = self.A + self.push * (self.A - A), self.C + self.push * (self.C - C)
        point = self.losses.at(new_A @ new_C, self.point)
        if point.value + self._penalty(new_A, new_C) < self.objective():
            self.A, self.C, self.point = new_A, new_C, point
            self.push *= 1.5
        else:
            self.push = max(0.5 * self.push, 0.5)

    def _balance(self) -> None:
        """Rescale every latent task and its use so that their penalties are least; A C stays as it is."""
        if self.alpha == 0.0 or self.ridge == 0.0:
            return
        uses, squares = np.abs(self.A).sum(axis=0), np.square(self.C).sum(axis=1)
        alive = (uses > 0) & (squares > 0)
        ratio = self.ridge * squares / (self.alpha * np.where(alive, uses, 1.0))
        scale = np.where(alive, np.cbrt(np.where(alive, ratio, 1.0)), 1.0)
        A, C = self.A * scale, self.C / scale[:, None]
        if self._penalty(A, C) < self._penalty(self.A, self.C):
            self.A, self.C = A, C
            self.point = self.losses.at(A @ C, self.point)

    def _improve(self, A: Floats, C: Floats) -> None:
        """Go towards (A, C), of which one is as it was, as far as the objective falls."""
        here, size = self.objective(), 1.0
        for _ in range(_HALVINGS):
            new_A, new_C = self.A + size * (A - self.A), self.C + size * (C - self.C)
            point = self.losses.at(new_A @ new_C, self.point)
            if point.value + self._penalty(new_A, new_C) <= here:
                if size == 1.0:
                    new_A, new_C = A, C  # keeps exact zeros
                self.A, self.C, self.point = new_A, new_C, point
                return
            size *= 0.5

    def _mixing(self, start: Floats, C: Floats) -> Floats:
        """Return the best A for C under the quadratic model of the losses at the current point."""
        curvature = self.losses.curvature(self.point)
        linear = curvature.times(self.point.W) - self.point.gradient
        grams = np.matmul(C @ curvature.grams, C.T)[curvature.pattern] * curvature.scale[:, None, None]
        right = linear @ C.T
        A = start.copy()
        for _ in range(_SWEEPS):
            largest = 0.0
            for j in range(A.shape[1]):
                bend = grams[:, j, j]
                pull = right[:, j] - np.einsum("tl,tl->t", grams[:, j], A) + bend * A[:, j]
                shrunk = np.sign(pull) * np.maximum(np.abs(pull) - self.alpha, 0.0)
                new = np.where(bend > 0, shrunk / np.where(bend > 0, bend, 1.0), 0.0)
                largest = max(largest, float(np.abs(new - A[:, j]).max()))
                A[:, j] = new
            if largest <= 1e-9 * max(float(np.abs(A).max()), 1e-300):
                break
        return A

    def _latent(self) -> Floats:
        """Return the best C for A under the quadratic model of the losses at the current point."""
        curvature = self.losses.curvature(self.point)
        linear = curvature.times(self.point.W) - self.point.gradient
        k, d = self.C.shape
        P = len(curvature.grams)
        pairs = (curvature.scale[:, None, None] * self.A[:, :, None] * self.A[:, None, :]).reshape(-1, k * k)
        summed = np.zeros((P, k * k))
        np.add.at(summed, curvature.pattern, pairs)
        system = (summed.T @ curvature.grams.reshape(P, d * d)).reshape(k, k, d, d).transpose(0, 2, 1, 3)
        system = system.reshape(k * d, k * d) + self.ridge * np.eye(k * d)
        right = (self.A.T @ linear).ravel()
        try:
            np.linalg.cholesky(system)
            return np.asarray(np.linalg.solve(system, right).reshape(k, d))
        except np.linalg.LinAlgError:
            return np.asarray(np.linalg.lstsq(system, right, rcond=1e-12)[0].reshape(k, d))

    def _restart(self) -> None:
        """Try the steepest direction in place of a latent task that no task uses."""
        dead = np.flatnonzero(~self.A.any(axis=0))
        if len(dead) == 0 or not self.A.any():
            return
        here = self.objective()
        old = self.A, self.C, self.point
        _, _, Vt = np.linalg.svd(self.point.gradient, full_matrices=False)
        C = self.C.copy()
        C[dead[0]] = Vt[0] * np.sqrt(np.square(self.C).sum() / max(len(self.C) - len(dead), 1))
        A = self._mixing(self.A, C)
        self.A, self.C, self.point = A, C, self.losses.at(A @ C, self.point)
        self._improve(self.A, self._latent())
        if not self.objective() < here:
            self.A, self.C, self.point = old
