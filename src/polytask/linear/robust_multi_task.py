"""Robust multi-task learning: shared structure for most tasks, coefficients of their own for outlier tasks.

    min_{L, S, b}  sum_t c_t mean_loss_t(w_t = l_t + s_t)  +  Omega_shared(L)  +  outlier sum_t ||s_t||_2

W = L + S: (T tasks, d features). The shared part is of low rank, Omega_shared = alpha ||L||_* (RMTL),
or uses few features, Omega_shared = alpha sum_j ||l^j||_2 (rMTFL). A task whose s_t is not 0 is an
outlier: what the others share does not fit it.

From outlier >= max_t ||gradient of task t at W||_2 on, S = 0 and the model is the trace norm's or the
block-sparse one; from alpha >= the dual norm of the gradient on, L = 0.

Chen, Zhou & Ye, Integrating low-rank and group-sparse structures for robust multi-task learning,
KDD 2011; Gong, Ye & Zhang, Robust multi-task feature learning, KDD 2012.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.linear.penalised import PenalisedEstimator, names_of, positive, root_covariance, task_relations
from polytask.linear.penalties.block import RowNorm
from polytask.linear.penalties.spectral import Penalty, TaskNorm, TraceNorm

SHARED = ("low-rank", "features")


class RobustMultiTask(PenalisedEstimator):
    """Linear models of several tasks of which some may be outliers (see the module for the formula).

    Parameters
    ----------
    alpha
        Strength on the shared part, positive.
    outlier
        Strength on the tasks' own parts, positive; the larger, the fewer outlier tasks.
    shared
        ``"low-rank"``: the shared part has few directions (trace norm). ``"features"``: it uses few
        features (l1/l2 norm).
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        L + S.
    shared_coef_, own_coef_ : ndarray of shape (n_tasks, n_features)
        L and S.
    outliers_ : ndarray of bool, shape (n_tasks,)
        Tasks with a part of their own.
    intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    relations_ : dict of Relation
        ``"outliers"`` (norms of the shared and own parts), covariance, correlation and tree of the shared part.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 4))
    >>> W = np.outer([1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    >>> W[7] = [0.0, 0.0, 3.0, -3.0]
    >>> RobustMultiTask(alpha=0.5, outlier=0.3).fit(X, X @ W.T).outliers_
    array([False, False, False, False, False, False, False,  True])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        outlier: float = 0.1,
        *,
        shared: str = "low-rank",
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.outlier = outlier
        self.shared = shared
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - same for all shapes
        if self.shared not in SHARED:
            raise InputError(f'shared must be "low-rank" or "features", got {self.shared!r}')
        alpha = positive("alpha", self.alpha, "the strength on the shared part")
        outlier = positive("outlier", self.outlier, "the strength on the tasks' own parts")
        shared: Penalty = TraceNorm(alpha) if self.shared == "low-rank" else RowNorm(alpha)
        return [shared, TaskNorm(outlier)]

    def _describe(self) -> None:
        self.shared_coef_, self.own_coef_ = self._parts
        self.outliers_ = self.own_coef_.any(axis=1)

    def _relate(self) -> dict[str, Relation]:
        norms = np.linalg.norm(self._parts, axis=2)
        return {
            "outliers": Relation(
                "weights",
                norms.T,
                names_of(self.outputs_),
                ("shared", "own"),
                "Norms of a task's shared and own coefficients; own is 0 unless the task is an outlier.",
            ),
            **task_relations(
                root_covariance(self.shared_coef_), self.outputs_, "(L L^T)^(1/2) / trace of the shared part."
            ),
        }
