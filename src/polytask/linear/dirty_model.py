"""Dirty model: coefficients are the sum of a part that all tasks share and a part of each task's own.

    min_{B, S, b}  sum_t c_t mean_loss_t(w_t = b_t + s_t)  +  alpha sum_j max_t |b_tj|  +  own sum_tj |s_tj|
                   +  ridge / 2 ||W||²

W = B + S: (T tasks, d features). B has few features, used by all tasks (l1/linf); S is sparse
(l1). With alpha >= T own nothing is shared (B = 0, the lasso); with own >= alpha everything is
(S = 0, the simultaneous lasso); between them it needs little more rows than the better of the two,
whatever part of the tasks' features is common.

The best split of a given W is known, so the solver works on W alone, which is unique where the losses
are strictly convex; (B, S) need not be, and the one with the largest shared part is reported.

Jalali, Ravikumar, Sanghavi & Ruan, A dirty model for multi-task learning, NIPS 2010.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.core.relation import Relation
from polytask.linear.feature_norm import FeatureNormEstimator
from polytask.linear.parameters import positive
from polytask.linear.penalised import names_of
from polytask.linear.penalties.dirty import SharedAndOwn


class DirtyModel(FeatureNormEstimator):
    """Linear models of several tasks with shared features and features of their own (l1/linf + l1).

    Parameters
    ----------
    alpha
        Strength on the shared part, positive. From :meth:`alpha_max` on, with ``own`` in proportion,
        all coefficients are 0.
    own
        Strength on the tasks' own parts, positive; both parts are used where 1 < alpha / own < T.
    ridge
        Strength of the squared penalty on W, at least 0.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.task_lasso.TaskLasso`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        B + S.
    shared_coef_, own_coef_ : ndarray of shape (n_tasks, n_features)
        B and S.
    intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.task_lasso.TaskLasso`.
    relations_ : dict of Relation
        ``"parts"`` (l1 norms of each task's shared and own part), ``"shared part"`` and ``"own part"`` (their
        coefficients for the features in use).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 4))
    >>> W = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    >>> model = DirtyModel(alpha=0.2, own=0.1).fit(X, X @ W.T)
    >>> model.shared_coef_.any(axis=0), model.own_coef_.any(axis=0)
    (array([ True, False, False, False]), array([False, False,  True, False]))
    """

    def __init__(
        self,
        alpha: float = 0.1,
        own: float = 0.06,
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
        self.own = own
        self.ridge = ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _norm(self) -> SharedAndOwn:
        return SharedAndOwn(
            positive("alpha", self.alpha, "the strength on the shared part"),
            positive("own", self.own, "the strength on the tasks' own parts"),
        )

    def _describe(self) -> None:
        self.shared_coef_, self.own_coef_ = self._norm().split(self.coef_)

    def _relate(self) -> dict[str, Relation]:
        parts = np.stack([np.abs(self.shared_coef_).sum(axis=1), np.abs(self.own_coef_).sum(axis=1)], axis=1)
        return {
            "parts": Relation(
                "weights",
                parts,
                names_of(self.outputs_),
                ("shared", "own"),
                "Sums of the magnitudes of a task's shared and own coefficients.",
            ),
            "shared part": self._used(self.shared_coef_, "Coefficients that the tasks share, of the features in use."),
            "own part": self._used(self.own_coef_, "Coefficients of each task's own, of the features in use."),
        }
