"""Gaussian mixture over tasks: coefficients are drawn from a few Gaussians that are learned from all tasks.

    y_t = X_t w_t + b_t + noise of variance s²,    w_t ~ sum_k q_k N(m_k, S_k),    m_k ~ N(0, b² I)

W: (T tasks, d features). The w_t are integrated out: under cluster k the labels of a task are
N(X_t m_k, X_t S_k X_t^T + s² I), from which memberships, m_k, S_k, s² and b² are learned by
expectation-maximisation of (a lower bound of) the marginal likelihood, exact for one cluster; see
:mod:`~polytask.linear.solvers.task_mixture`. First all clusters have one covariance tau² I, and the
number of clusters with the highest bound is taken. Then full or diagonal covariances of the
clusters' own are learned under an inverse-Wishart prior about tau² I that is worth ``prior_tasks``
tasks. A task's coefficients are its posterior mean: between its own least squares and its cluster.

Limits: S -> 0 with one cluster: one ridge for all rows; S -> inf: least squares per task.

Bakker & Heskes, Task clustering and gating for Bayesian multitask learning, JMLR 2003 (linear inputs,
without features of the tasks); Lindley & Smith, Bayes estimates for the linear model, JRSS B 1972.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.bayesian import BayesianEstimator, membership, used_clusters
from polytask.linear.estimator import warn_unconverged
from polytask.linear.parameters import count, positive
from polytask.linear.solvers.task_evidence import SquaredStatistics, TaskEvidence
from polytask.linear.solvers.task_mixture import (
    COVARIANCES,
    NARROWER,
    Design,
    Prior,
    TaskMixture,
    partitions,
    plain_design,
    prior_of_one,
    run,
    with_clusters,
)

_PATIENCE = 2  # further clusters that do not raise the bound before the search ends


class GaussianMixtureTasks(BayesianEstimator):
    """Linear models of tasks whose coefficients come from a mixture of Gaussians (see the module).

    Parameters
    ----------
    n_clusters
        Number of clusters; None: chosen by the marginal likelihood.
    covariance
        ``"full"`` or ``"diagonal"``: of each cluster's own; ``"spherical"``: tau² I for all.
    prior_tasks
        How many tasks the prior of a cluster's covariance is worth, positive; None: d + 2.
    spread
        Standard deviation of coefficients about their cluster, the same for all of them; None: learned
        (then ``covariance`` says what is learned).
    max_clusters
        Largest number of clusters that is tried.
    fit_intercept
        Whether there are intercepts.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.bayesian`.
    tol
        Stop when a round raises the bound by less than ``tol`` per task.
    max_iter
        Largest number of rounds for each number of clusters.
    random_state
        Seed of the k-means that forms the first groups of more than 150 tasks.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        Posterior means.
    intercept_ : ndarray of shape (n_tasks,)
    shares_ : ndarray of shape (n_tasks, n_clusters_)
        Posterior probability of each cluster that is the likeliest of some task.
    labels_ : ndarray of shape (n_tasks,)
        The likeliest cluster of each task, 0 for that of the first task, and so on.
    n_clusters_ : int
    means_ : ndarray of shape (n_clusters_, n_features)
    covariances_ : ndarray of shape (n_clusters_, n_features, n_features)
        Clusters in the order of ``shares_``; with coupled intercepts both have a last entry for them.
    noise_variance_, mean_variance_ : float
        s² and b².
    evidence_ : ndarray of shape (n_iter_ + 1,)
        Lower bound of the log marginal likelihood, with the log density of the covariances relative to
        the prior's mode, at the start and after each of the last rounds.
    evidences_ : dict
        Number of clusters → bound with one spherical covariance.
    relations_ : dict of Relation
        ``"clusters"``, ``"task similarity"`` and, with two tasks or more, ``"task tree"``.
    n_iter_, tasks_, logistic_

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 3))
    >>> W = np.array([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.0]])[[0, 0, 0, 1, 1]] + 0.1 * rng.normal(size=(5, 3))
    >>> GaussianMixtureTasks().fit(X, X @ W.T + 0.5 * rng.normal(size=(40, 5))).labels_
    array([0, 0, 0, 1, 1])
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        covariance: str = "diagonal",
        prior_tasks: float | None = None,
        spread: float | None = None,
        max_clusters: int = 10,
        fit_intercept: bool = True,
        intercepts: str = "own",
        tol: float = 1e-4,
        max_iter: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.covariance = covariance
        self.prior_tasks = prior_tasks
        self.spread = spread
        self.max_clusters = max_clusters
        self.fit_intercept = fit_intercept
        self.intercepts = intercepts
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _check_common(self) -> None:
        super()._check_common()
        if self.n_clusters is not None:
            count("n_clusters", self.n_clusters, "the number of clusters")
        count("max_clusters", self.max_clusters, "the largest number of clusters that is tried")
        if self.covariance not in COVARIANCES:
            raise InputError(f"covariance must be one of {', '.join(COVARIANCES)}, got {self.covariance!r}")
        if self.prior_tasks is not None:
            positive("prior_tasks", self.prior_tasks, "how many tasks the prior of a covariance is worth")
        if self.spread is not None:
            positive("spread", self.spread, "the standard deviation of coefficients about their cluster")

    def _learn(self, evidence: TaskEvidence) -> tuple[Floats, Floats]:
        data = evidence.squared
        n_features = data.cross.shape[1]
        prior, problem = self._spherical(data)
        if self.covariance != "spherical" and self.spread is None:
            nu = n_features + 2.0 if self.prior_tasks is None else float(self.prior_tasks)
            problem = TaskMixture(
                data, replace(problem.design, form=self.covariance, strength=nu, centre=prior.covariance[0])
            )
            prior = replace(prior, covariance=np.repeat(prior.covariance, prior.n_clusters, axis=0))
        prior, posterior, reached = run(problem.advance, prior, tol=self._bound(data), max_iter=int(self.max_iter))
        self.evidence_ = np.array(reached)
        self.n_iter_ = len(reached) - 1
        if self.n_iter_ >= self.max_iter and reached[-1] - reached[-2] > self._bound(data):
            gain = reached[-1] - reached[-2]
            warn_unconverged(type(self).__name__, gain, self._bound(data), "a gain of evidence of", self.max_iter)
        self.shares_, self.labels_ = used_clusters(posterior.shares)
        self.n_clusters_ = self.shares_.shape[1]
        order = [int(posterior.shares.argmax(axis=1)[np.argmax(self.labels_ == k)]) for k in range(self.n_clusters_)]
        self.means_ = prior.mean[order, 0]
        self.covariances_ = np.broadcast_to(prior.covariance, (prior.n_clusters, n_features, n_features))[order]
        self.noise_variance_ = float(prior.noise)
        self.mean_variance_ = float(prior.breadth)
        W = problem.coefficients(prior, posterior.shares)
        return W, evidence.intercepts(W)

    def _bound(self, data: SquaredStatistics) -> float:
        return float(self.tol) * len(data.n)

    def _spherical(self, data: SquaredStatistics) -> tuple[Prior, TaskMixture]:
        """Return the best prior with one spherical covariance."""
        T, d = data.cross.shape
        design = plain_design(T)
        if self.spread is not None:
            centre = float(self.spread) ** 2 * np.eye(d)
            design = Design(design.features, design.gating, strength=np.inf, centre=centre)
        problem = TaskMixture(data, design)

        def solve(prior: Prior) -> tuple[Prior, float]:
            found, _, reached = run(problem.advance, prior, tol=self._bound(data), max_iter=int(self.max_iter))
            return found, reached[-1]

        one, value = solve(prior_of_one(data, design))
        self.evidences_ = {1: value}
        most = min(self.max_clusters if self.n_clusters is None else self.n_clusters, T)
        best, without_gain = one, 0
        if most == 1:
            return one, problem
        groups = partitions(data, one, most, int(self.random_state))
        for K in range(2, most + 1) if self.n_clusters is None else (most,):
            start, shares = with_clusters(one, groups[K], K, narrower=1.0 if self.spread else NARROWER)
            found, value = solve(problem.learn(start, shares))
            if self.n_clusters is not None or value > max(self.evidences_.values()):
                best, without_gain = found, 0
            else:
                without_gain += 1
            self.evidences_[K] = value
            if without_gain == _PATIENCE:
                break
        return best, problem

    def _relate(self) -> dict[str, Relation]:
        return membership(self.shares_, self.tasks_)
