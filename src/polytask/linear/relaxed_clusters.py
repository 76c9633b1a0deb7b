"""Relaxed k-means over tasks (CMTL), which is also relaxed alternating structure optimisation (cASO).

    min_{W, b, M}  sum_t c_t mean_loss_t  +  alpha / 2 eta (1 + eta) tr(W^T (eta I + M)^-1 W),
                   0 <= M <= I, tr M = k,   eta = ridge / alpha

W: (T tasks, d features), M: (T, T) in place of the projection on k clusters. For a projection M the
penalty is alpha / 2 (tr W^T W - tr W^T M W) + ridge / 2 ||W||², the k-means cost of the tasks'
coefficients plus ridge. cASO has M of shape (d, d) in place of the projection on k shared
directions and tr(W (eta I + M)^-1 W^T); both are the same function of the singular values s of W,

    alpha / 2 eta (1 + eta) min { sum_i s_i² / (eta + m_i) : 0 <= m_i <= 1, sum_i m_i = k },

so they have the same coefficients. M has W's singular vectors and m_i = clip(u s_i - eta, 0, 1).

Zhou, Chen & Ye, Clustered multi-task learning via alternating structure optimization, NIPS 2011;
Chen, Tang, Liu & Ye, A convex formulation for learning shared structures from multiple tasks, ICML 2009.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.linear.penalised import PenalisedEstimator, count, feature_names, names_of, positive, task_relations
from polytask.linear.penalties.spectral import Penalty, SpectralBox

SIDES = ("tasks", "features")


class RelaxedClusters(PenalisedEstimator):
    """Linear models of tasks in k clusters, or along k shared directions, both relaxed (CMTL and cASO).

    Parameters
    ----------
    alpha
        Strength on what lies outside the clusters or directions (rho_1), positive.
    n_clusters
        k; no more than there are tasks and features are used.
    ridge
        Strength on all coefficients (rho_2), positive.
    side
        ``"tasks"``: M relates tasks (CMTL). ``"features"``: M relates features (cASO). The
        coefficients are the same.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    projection_ : ndarray of shape (n_tasks, n_tasks) or (n_features, n_features)
        M, with eigenvalues 0 … 1 and trace k.
    relations_ : dict of Relation
        ``"projection"``, and the covariance eta I + M of the tasks with its correlation and tree.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 3))
    >>> Y = X @ np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    >>> RelaxedClusters(alpha=1.0, n_clusters=2, ridge=1e-3).fit(X, Y).projection_.round(1) + 0.0
    array([[0.5, 0.5, 0. , 0. ],
           [0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5],
           [0. , 0. , 0.5, 0.5]])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        n_clusters: int = 3,
        *,
        ridge: float = 0.01,
        side: str = "tasks",
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.n_clusters = n_clusters
        self.ridge = ridge
        self.side = side
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:
        if self.side not in SIDES:
            raise InputError(f'side must be "tasks" or "features", got {self.side!r}')
        alpha = positive("alpha", self.alpha, "the strength on what lies outside the clusters")
        eta = positive("ridge", self.ridge, "the strength on all coefficients") / alpha
        size = n_tasks if self.side == "tasks" else n_features
        k = min(count("n_clusters", self.n_clusters, "the number of clusters"), size)
        return [SpectralBox(alpha * eta * (1.0 + eta), eta, 1.0 + eta, k + size * eta, size)]

    def _describe(self) -> None:
        W = self.coef_
        (penalty,) = self._penalties(*W.shape)
        assert isinstance(penalty, SpectralBox)
        size, eta = penalty.size, penalty.low
        square = W if self.side == "tasks" else W.T
        U, s, _ = np.linalg.svd(square, full_matrices=True)
        m = np.zeros(size)
        m[: len(s)] = penalty.weights(s) - eta
        rest = penalty.total - size * eta - m.sum()
        idle = m <= 0.0  # directions without coefficients take what is left of the trace
        if rest > 1e-12 and idle.any():
            m[idle] += rest / idle.sum()
        matrix = (U * m) @ U.T
        self.projection_ = np.asarray(0.5 * (matrix + matrix.T))

    def _relate(self) -> dict[str, Relation]:
        size = len(self.projection_)
        names = names_of(self.outputs_) if self.side == "tasks" else feature_names(self, size)
        found = {
            "projection": Relation(
                "covariance", self.projection_, names, names, "M: near 1 / size within a cluster, 0 between clusters."
            )
        }
        if self.side == "tasks":
            found.update(
                task_relations(
                    self.projection_ + float(self.ridge) / float(self.alpha) * np.eye(size),
                    self.outputs_,
                    "Prior covariance eta I + M of the tasks' coefficients.",
                )
            )
        return found
