"""Learned task relationships: the covariance of the tasks' coefficients is learned with them (MTRL).

    min_{W, b, O}  sum_t c_t mean_loss_t  +  ridge / 2 ||W||_F²  +  alpha / 2 tr(W^T O^-1 W),
                   O positive semidefinite, tr O <= 1

W: (T tasks, d features), O: (T, T), whose correlations say which tasks help, are unrelated or oppose
each other. At the best O = (W W^T)^(1/2) / tr (W W^T)^(1/2) the last term is alpha / 2 ||W||_*², so the
problem is solved exactly by proximal steps on ridge plus squared trace norm. Alternating between W
and O, as in the paper, stops 15-18 % above the optimum on small samples: a direction that O has once
given up costs nearly infinitely much.

A new task can be learned afterwards without learning the others again (:meth:`TaskCovariance.new_task`): its
covariance with them is learned with its coefficients, theirs only shrinks to (1 - v) O.

The paper's loss is without the 1/2 of squared loss here: alpha and ridge are half its lambda_2, lambda_1.

Zhang & Yeung, A convex formulation for learning task relationships in multi-task learning, UAI 2010;
A regularization approach to learning task relationships in multitask learning, TKDD 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import warn_unconverged
from polytask.linear.moments import is_sparse
from polytask.linear.penalised import PenalisedEstimator, not_negative, positive, root_covariance, task_relations
from polytask.linear.penalties.spectral import Penalty, SquaredTraceNorm
from polytask.linear.solvers.interior import root_of
from polytask.linear.solvers.new_task import place_task


@dataclass(frozen=True)
class NewTask:
    """A task learned beside those of a fitted model.

    Parameters
    ----------
    coef, intercept
        ``(d,)`` and a number.
    covariance
        Of the model's tasks and, last, this one, ``(T + 1, T + 1)``, of trace 1.
    dual_gap
        How far the objective is above its minimum at most.
    """

    coef: Floats
    intercept: float
    covariance: Floats
    dual_gap: float

    def predict(self, X: Any) -> Floats:
        """Return the predictions for inputs ``(n, d)``."""
        return np.asarray(X @ self.coef + self.intercept, dtype=np.float64)


class TaskCovariance(PenalisedEstimator):
    """Linear models of several tasks and the covariance between them (MTRL).

    Parameters
    ----------
    alpha
        Strength of the relationship penalty, positive.
    ridge
        Strength of the plain squared penalty, not negative.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    covariance_ : ndarray of shape (n_tasks, n_tasks)
        O, of trace 1 (I / T when all coefficients are 0).
    relations_ : dict of Relation
        ``"task covariance"``, ``"task correlation"`` and, with two tasks or more, ``"task tree"``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> Y = X @ np.array([[1.0, 1.0, -1.0], [2.0, 2.0, -2.0], [0.0, 0.0, 0.0]])
    >>> TaskCovariance(alpha=1e-4).fit(X, Y).relations_["task correlation"].values.round(2)
    array([[ 1.,  1., -1.],
           [ 1.,  1., -1.],
           [-1., -1.,  1.]])
    """

    def __init__(
        self,
        alpha: float = 0.01,
        ridge: float = 0.01,
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
        self.ridge = ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - same for all shapes
        alpha = positive("alpha", self.alpha, "the strength of the relationship penalty")
        ridge = not_negative("ridge", self.ridge, "the strength of the plain squared penalty")
        return [SquaredTraceNorm(alpha, ridge)]

    def _describe(self) -> None:
        self.covariance_ = root_covariance(self.coef_)

    def new_task(self, X: Any, y: Any) -> NewTask:
        """Return a task with squared loss learned beside those of the model, which stay as they are.

        Its coefficients w, intercept, and O_+ = [[(1 - v) O, o], [o^T, v]] minimise mean loss + ridge / 2 ||w||² +
        alpha / 2 tr(W_+^T O_+^-1 W_+), with W_+ the coefficients of all tasks; see
        :mod:`~polytask.linear.solvers.new_task`.

        Parameters
        ----------
        X, y
            Inputs ``(n, d)`` and targets ``(n,)`` of the new task.
        """
        check_is_fitted(self)
        X = self._inputs(X, reset=False)
        target = np.asarray(y, dtype=np.float64)
        if target.shape != (X.shape[0],) or not np.isfinite(target).all():
            raise InputError(
                f"y has shape {target.shape}; give one finite target of the new task per row of X, ({X.shape[0]},)"
            )
        mean_x, mean_y = np.zeros(X.shape[1]), 0.0
        if self.fit_intercept:
            mean_x, mean_y = np.asarray(X.mean(axis=0), dtype=np.float64), float(target.mean())
        R, z = _rooted(X, mean_x, target - mean_y, float(self.ridge))
        found = place_task(R, z, self.coef_, float(self.alpha), tol=float(self.tol), max_steps=int(self.max_iter))
        bound = 0.5 * float(self.tol) * float(z @ z)
        if found.gap > bound:
            warn_unconverged(f"{type(self).__name__}.new_task", found.gap, bound, "a duality gap of", self.max_iter)
        covariance = np.block(
            [
                [(1.0 - found.variance) * self.covariance_, found.cross[:, None]],
                [found.cross[None], np.array([[found.variance]])],
            ]
        )
        return NewTask(found.w, float(mean_y - mean_x @ found.w), covariance, found.gap)

    def _relate(self) -> dict[str, Relation]:
        about = "How the tasks' coefficients vary together, learned with them; trace 1."
        return task_relations(self.covariance_, self.outputs_, about)


def _rooted(X: Any, mean: Floats, y: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Return R and z, of at most d rows, with mean loss + ridge / 2 ||w||² = 1/2 ||R w - z||² + a constant."""
    n, d = X.shape
    if is_sparse(X):
        gram = (X.T @ X).toarray() / n - np.outer(mean, mean) + ridge * np.eye(d)
        root = root_of(gram)
        return root, np.asarray(np.linalg.lstsq(root.T, X.T @ y / n - mean * y.mean(), rcond=None)[0])
    rows = (np.asarray(X, dtype=np.float64) - mean) / np.sqrt(n)
    target = y / np.sqrt(n)
    if ridge > 0.0:
        rows, target = np.concatenate([rows, np.sqrt(ridge) * np.eye(d)]), np.concatenate([target, np.zeros(d)])
    if len(rows) <= d:
        return rows, target
    Q, R = np.linalg.qr(rows)
    return R, np.asarray(Q.T @ target)
