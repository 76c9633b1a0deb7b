"""Learned task relationships: the covariance of the tasks' coefficients is learned with them (MTRL).

    min_{W, b, O}  sum_t c_t mean_loss_t  +  ridge / 2 ||W||_F²  +  alpha / 2 tr(W^T O^-1 W),
                   O positive semidefinite, tr O <= 1

W: (T tasks, d features), O: (T, T), whose correlations say which tasks help, are unrelated or oppose
each other. At the best O = (W W^T)^(1/2) / tr (W W^T)^(1/2) the last term is alpha / 2 ||W||_*², so the
problem is solved exactly by proximal steps on ridge plus squared trace norm. Alternating between W
and O, as in the paper, stops 15-18 % above the optimum on small samples: a direction that O has once
given up costs nearly infinitely much.

The paper's loss is without the 1/2 of squared loss here: alpha and ridge are half its lambda_2, lambda_1.

Zhang & Yeung, A convex formulation for learning task relationships in multi-task learning, UAI 2010;
A regularization approach to learning task relationships in multitask learning, TKDD 2014.
"""

from __future__ import annotations

from typing import Any

from polytask.core.relation import Relation
from polytask.linear.penalised import PenalisedEstimator, not_negative, positive, root_covariance, task_relations
from polytask.linear.penalties.spectral import Penalty, SquaredTraceNorm


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

    def _relate(self) -> dict[str, Relation]:
        about = "How the tasks' coefficients vary together, learned with them; trace 1."
        return task_relations(self.covariance_, self.outputs_, about)
