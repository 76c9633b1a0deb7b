"""Clustered multi-task learning: tasks fall into unknown groups whose coefficients are alike.

For a partition of T tasks into r clusters, with w_mean the mean of all, w_c the mean of cluster c:

    Omega_mean = T ||w_mean||²    Omega_between = sum_c T_c ||w_c - w_mean||²    Omega_within = sum_t ||w_t - w_c(t)||²

    min_{W, b}  sum_t c_t mean_loss_t + alpha / 2 (mean Omega_mean + between Omega_between + within Omega_within)

with mean <= between <= within. The partition is relaxed: with the deviations V = W - 1 w_mean^T,
W: (T, d), between Omega_between + within Omega_within becomes the cluster norm

    ||V||_c² = min { tr(V^T S^-1 V) : I / within <= S <= I / between, tr S = (T - r + 1) / within + (r - 1) / between },

a lower bound for every partition and convex in W. With s the singular values of V, S has V's left
singular vectors and the eigenvalues clip(u s_i, 1 / within, 1 / between), u such that they add up
(closed form); the proximal map solves the same problem on a shifted box. Clusters are read out by
k-means on the tasks' coordinates in the r - 1 leading directions of V.

Limits: r = 1: every deviation costs ``within``, which is the mean-regularised model; r = T, or
between = within: every deviation costs ``between``; mean = between = within: ridge.

Jacob, Bach & Vert, Clustered multi-task learning: a convex formulation, NIPS 2008.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.penalised import PenalisedEstimator, count, names_of, positive, task_relations
from polytask.linear.penalties.spectral import AroundMean, Penalty, SpectralBox


class ClusteredTasks(PenalisedEstimator):
    """Linear models of tasks that form unknown clusters (see the module for the formula).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    n_clusters
        Number of clusters r; no more than there are tasks are used.
    mean, between, within
        Relative strength on the mean of all tasks, on the clusters' deviations from it and on the
        tasks' deviations from their cluster; 0 < mean <= between <= within.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    random_state
        Seed of k-means, which reads the clusters out; the coefficients do not depend on it.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    covariance_ : ndarray of shape (n_tasks, n_tasks)
        Prior covariance of the tasks that the relaxation has learned:
        11^T / (T mean) plus S without its part along 1.
    labels_ : ndarray of shape (n_tasks,)
        Cluster of each task, 0 for that of the first task, and so on.
    relations_ : dict of Relation
        ``"clusters"`` (1 where a task belongs to a cluster), and covariance, correlation and tree of the tasks.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 3))
    >>> Y = X @ np.array([[1.0, 1.0, -1.0, -1.0], [0.0, 0.1, 2.0, 2.1], [0.0, 0.0, 0.0, 0.0]])
    >>> ClusteredTasks(alpha=0.01, n_clusters=2).fit(X, Y).labels_
    array([0, 0, 1, 1])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        n_clusters: int = 3,
        *,
        mean: float = 0.01,
        between: float = 0.1,
        within: float = 1.0,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
        random_state: int = 0,
    ) -> None:
        self.alpha = alpha
        self.n_clusters = n_clusters
        self.mean = mean
        self.between = between
        self.within = within
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.random_state = random_state

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - d does not matter
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        mean, between, within = (
            positive(name, getattr(self, name), "a relative strength of the penalty")
            for name in ("mean", "between", "within")
        )
        if not mean <= between <= within:
            raise InputError(
                f"mean = {mean:g}, between = {between:g} and within = {within:g} must not fall in this order; "
                "tasks are drawn to their cluster more than clusters to the mean"
            )
        r = min(count("n_clusters", self.n_clusters, "the number of clusters"), n_tasks)
        total = (n_tasks - r + 1) / within + (r - 1) / between
        return [AroundMean(alpha * mean, SpectralBox(alpha, 1.0 / within, 1.0 / between, total, n_tasks))]

    def _describe(self) -> None:
        W = self.coef_
        T = len(W)
        (penalty,) = self._penalties(*W.shape)
        assert isinstance(penalty, AroundMean)
        assert isinstance(penalty.deviations, SpectralBox)
        box = penalty.deviations
        U, s, _ = np.linalg.svd(W - W.mean(axis=0), full_matrices=False)
        self._directions, self._spreads, self._level = U, box.weights(s) - box.low, box.low
        r = min(int(self.n_clusters), T)
        self._points, self._wanted = U[:, : r - 1] * s[: r - 1], r
        self._labels: Ints | None = None

    @property
    def covariance_(self) -> Floats:
        """Prior covariance of the tasks, ``(T, T)``; worked out when it is asked for."""
        check_is_fitted(self)
        U, T = self._directions, len(self._directions)
        along = U @ (self._spreads[:, None] * U.T)  # zero along 1 where a deviation has spread
        along = 0.5 * (along + along.T)
        means = along.mean(axis=0)
        covariance = along - means - means[:, None] + (1.0 / (T * float(self.mean)) - self._level / T + means.mean())
        np.einsum("tt->t", covariance)[:] += self._level
        return np.asarray(covariance)

    @property
    def labels_(self) -> Ints:
        """Cluster of each task; worked out when it is asked for."""
        check_is_fitted(self)
        if self._labels is None:
            self._labels = _clusters(self._points, self._wanted, self.random_state)
        return self._labels

    def _relate(self) -> dict[str, Relation]:
        tasks = names_of(self.outputs_)
        clusters = tuple(f"cluster {number + 1}" for number in range(int(self.labels_.max()) + 1))
        members = (self.labels_ == np.arange(len(clusters))[:, None]).astype(np.float64)
        return {
            "clusters": Relation("loadings", members, clusters, tasks, "1 where a task belongs to a cluster."),
            **task_relations(
                self.covariance_, self.outputs_, "Prior covariance of the tasks' coefficients in units of 1 / alpha."
            ),
        }


def _clusters(points: Floats, wanted: int, seed: int) -> Ints:
    """Return cluster numbers by k-means, in the order of first appearance."""
    from sklearn.cluster import KMeans

    scale = max(float(np.abs(points).max(initial=0.0)), 1e-300)
    distinct = len(np.unique((points / scale).round(9), axis=0)) if points.shape[1] else 1
    wanted = min(wanted, distinct)
    if wanted == 1:
        return np.zeros(len(points), dtype=np.int64)
    raw = KMeans(wanted, n_init=10, random_state=seed).fit_predict(points)
    _, first, number = np.unique(raw, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[number], dtype=np.int64)
