"""Dirichlet-process task clustering: tasks share coefficient vectors, and how many there are is learned.

    y_t | w_t: linear or logistic,    w_t ~ G,    G ~ DP(a0, N(0, (precision R)^-1)),

so w_t = w*_z(t) with stick-breaking weights P(z = k) = v_k prod_{j<k} (1 - v_j), v_k ~ Beta(1, a0).
R = I for logistic loss; for squared loss with noise of variance s² it is I / s², so that one cluster
alone is the ridge of strength ``precision`` on the sum of squares. Beliefs are

    q(w*_k) = N(m_k, S_k)                 S_k^-1 = precision R + sum_t phi_tk A_t,  m_k = S_k sum_t phi_tk h_t
    q(v_k) = Beta(1 + sum_t phi_tk, a0 + sum_t sum_{j>k} phi_tj)
    q(z_t = k) = phi_tk                   proportional to exp(E log P(z = k) + E log p(y_t | w*_k)),

with the quadratics A_t, h_t of :mod:`~polytask.linear.solvers.task_evidence` (exact for squared loss,
the Jaakkola-Jordan bound for logistic). Sticks beyond the K kept keep their prior and hold no task,
so that the evidence lower bound is that of the full process. Rounds begin at the three best partitions found
by joining the pair of groups whose evidence gains most, under the process' prior of partitions; the
one whose clusters, as a partition, have the highest bound wins.
A task is predicted by the mixture of the clusters it may belong to (SMTL-1): its coefficients are
sum_k phi_tk m_k.

Limits: a0 -> 0: one vector for all tasks; a0 -> inf with T <= K: every task its own, unless the data
say that two are the same.

Xue, Liao, Carin & Krishnapuram, Multi-task learning for classification with Dirichlet process priors,
JMLR 2007; Blei & Jordan, Variational inference for Dirichlet process mixtures, Bayesian Analysis 2006.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaln, digamma, expit, gammaln, logit, logsumexp, xlogy

from polytask.core.data import Ints
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.bayesian import BayesianEstimator, membership, one_loss, used_clusters
from polytask.linear.estimator import warn_unconverged
from polytask.linear.layout import task_numbers
from polytask.linear.parameters import count, positive
from polytask.linear.solvers.task_evidence import TaskEvidence, agglomerate, coarse_groups, group_evidence

_MOST_STICKS = 20
_MOST_TASKS = 150  # that are joined pair by pair
_FIRST_ROUNDS = 10
_STARTS = 3  # partitions from which rounds begin


class DirichletProcessTasks(BayesianEstimator):
    """Linear or logistic models of tasks that form an unknown number of clusters of equal coefficients.

    Parameters
    ----------
    concentration
        a0, positive: the larger, the more clusters are expected beforehand.
    precision
        Precision of the clusters' coefficients, positive; see the module. Columns of X should have like units.
    n_components
        Sticks K that are kept; None: the number of tasks, 20 at most.
    loss
        ``"squared"`` or ``"logistic"``, the same for all tasks.
    fit_intercept
        Whether there are intercepts.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.bayesian`.
    tol
        Stop when a round raises the evidence lower bound by less than ``tol`` per task.
    max_iter
        Largest number of rounds.
    random_state
        Seed of the k-means that forms the first groups of more than 150 tasks.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        Mean coefficients of each task.
    intercept_ : ndarray of shape (n_tasks,)
    shares_ : ndarray of shape (n_tasks, n_clusters_)
        How likely each task belongs to each cluster that is the likeliest of some task.
    labels_ : ndarray of shape (n_tasks,)
        The likeliest cluster of each task, 0 for that of the first task, and so on.
    n_clusters_ : int
    noise_variance_ : float
        s² (NaN for logistic loss).
    evidence_ : ndarray of shape (n_iter_,)
        Lower bound of the log marginal likelihood after each round.
    relations_ : dict of Relation
        ``"clusters"``, ``"task similarity"`` and, with two tasks or more, ``"task tree"``.
    n_iter_, tasks_, logistic_

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 2))
    >>> Y = X @ np.array([[1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 2.0, 0.0]]) + 0.1 * rng.normal(size=(50, 4))
    >>> DirichletProcessTasks().fit(X, Y).labels_
    array([0, 0, 1, 0])
    """

    def __init__(
        self,
        concentration: float = 1.0,
        precision: float = 1.0,
        *,
        n_components: int | None = None,
        loss: Any = "squared",
        fit_intercept: bool = True,
        intercepts: str = "own",
        tol: float = 1e-6,
        max_iter: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.concentration = concentration
        self.precision = precision
        self.n_components = n_components
        self.loss = loss
        self.fit_intercept = fit_intercept
        self.intercepts = intercepts
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _check_common(self) -> None:
        super()._check_common()
        positive("concentration", self.concentration, "how many clusters are expected")
        positive("precision", self.precision, "the precision of the clusters' coefficients")
        if self.n_components is not None:
            count("n_components", self.n_components, "the number of sticks that are kept")

    def _learn(self, evidence: TaskEvidence) -> tuple[Floats, Floats]:
        T = len(self.tasks_)
        kept = min(T, _MOST_STICKS) if self.n_components is None else int(self.n_components)
        process = _Process(evidence, float(self.concentration), float(self.precision), one_loss(self))
        partitions = process.partitions(kept, int(self.random_state))
        least, alone = float(self.tol) * T, evidence.snapshot()
        ends = []
        for labels in partitions:
            evidence.restore(alone)
            process.start(labels, kept)
            ends.append((process.run(least, int(self.max_iter)), process.state(), process.log_partition()))
        reached, state, _ = max(ends, key=lambda end: end[2])
        process.resume(state)
        if len(reached) == self.max_iter > 1 and reached[-1] - reached[-2] > least:
            gain = reached[-1] - reached[-2]
            warn_unconverged(type(self).__name__, gain, least, "a gain of evidence of", self.max_iter)
        self.evidence_ = np.array(reached)
        self.n_iter_ = len(reached)
        self.noise_variance_ = float("nan") if process.logistic else float(evidence.noise)
        self._process = process
        self.shares_, self.labels_ = used_clusters(process.shares)
        self.n_clusters_ = self.shares_.shape[1]
        W = process.shares @ process.mean
        return W, evidence.intercepts(W)

    def _relate(self) -> dict[str, Relation]:
        return membership(self.shares_, self.tasks_)

    def task_scores(self, X: Any, tasks: Any = None) -> Floats:
        """Return x^T w_t + b_t, of logistic loss the log-odds of the mixture of clusters.

        ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``.
        """
        scores = super().task_scores(X, tasks)
        if not self._process.logistic:
            return scores
        X, tasks = self._tasks_of(X, tasks)
        X = self._inputs(X, reset=False)
        number = None if tasks is None else task_numbers(tasks, self.tasks_, len(X))
        return np.asarray(logit(self._mixture(X, number)).reshape(scores.shape))

    def _mixture(self, X: Floats, number: Ints | None) -> Floats:
        """Return P(y = 1) under the mixture, ``(n, T)``, or ``(n,)`` for the task of each row."""
        X = np.asarray(X, dtype=np.float64) - self._shift
        if self._coupled:
            X = np.column_stack([X, np.ones(len(X))])
        if number is None:
            every = [self._mixture_of(X, np.full(len(X), task)) for task in range(len(self.tasks_))]
            return np.stack(every, axis=1)
        return self._mixture_of(X, number)

    def _mixture_of(self, X: Floats, number: Ints) -> Floats:
        found = self._process.probabilities(X, number)
        if self._idle is None:
            return found
        return np.asarray(np.where(self._idle.rows[number], expit(self.intercept_[number]), found))

    def score(self, X: Any, y: Any, sample_weight: Any = None, tasks: Any = None) -> float:
        """Return the mean over tasks of R² (squared loss) or accuracy (logistic loss) on the labelled cells."""
        found = super().score(X, y, sample_weight, tasks)
        if not self._process.logistic:
            return found
        X, layout = self._read(X, y, tasks, sample_weight, reset=False)
        every = np.arange(len(layout.names))
        place = task_numbers(layout.names, self.tasks_, len(every)) if layout.form == "stacked" else every
        right = np.empty(len(place))
        for block in layout.blocks:
            likely = self._mixture(block.X, None)[:, place[block.outputs]] > 0.5
            right[block.outputs] = block.weights @ (likely == (block.Y > 0.5)) / block.total
        return float(right.mean())


class _Process:
    """Beliefs about sticks, clusters and memberships, and the rounds that improve them."""

    shares: Floats
    mean: Floats
    covariance: Floats
    fit: float

    def __init__(self, evidence: TaskEvidence, concentration: float, precision: float, logistic: bool) -> None:
        self.evidence, self.concentration, self.precision = evidence, concentration, precision
        self.logistic = logistic

    @property
    def _prior(self) -> Floats:
        scale = 1.0 if self.logistic else self.evidence.noise
        return np.asarray(self.precision / scale * np.eye(self.evidence.n_features))

    def partitions(self, kept: int, seed: int) -> list[Ints]:
        """Return the likeliest partitions into at most ``kept`` groups, of those that joining tasks goes through."""
        evidence = self.evidence
        means = self._alone()
        start = coarse_groups(means, max(_MOST_TASKS, kept), seed)
        levels = agglomerate(evidence.precision, evidence.linear, self._prior, start)
        levels = [level for level in levels if level.labels.max() < kept]
        values = []
        for level in levels:
            log_prior = self._log_prior(np.bincount(level.labels))
            values.append(log_prior + (level.value if self.logistic else self._profile(level.labels)))
        return [levels[place].labels for place in np.argsort(values, kind="stable")[::-1][:_STARTS]]

    def start(self, labels: Ints, kept: int) -> None:
        """Set the memberships to a partition, large groups first and equal ones in the order of their evidence."""
        evidence = self.evidence
        sizes = np.bincount(labels)
        J, h = np.zeros((len(sizes), *evidence.precision.shape[1:])), np.zeros((len(sizes), evidence.n_features))
        np.add.at(J, labels, evidence.precision)
        np.add.at(h, labels, evidence.linear)
        order = np.lexsort((-group_evidence(J, h, self._prior), -sizes))
        self.shares = np.zeros((evidence.n_tasks, kept))
        self.shares[np.arange(evidence.n_tasks), np.argsort(order)[labels]] = 1.0

    def run(self, least: float, limit: int) -> list[float]:
        """Improve all beliefs until a round gains at most ``least``; return the lower bound after every round."""
        reached = [self.round()]
        while len(reached) < limit:
            self.refit()
            reached.append(self.round())
            if reached[-1] - reached[-2] <= least:
                break
        return reached

    def state(self) -> tuple[Floats, Floats, Floats, Any]:
        """Return the beliefs."""
        return self.shares, self.mean, self.covariance, self.evidence.snapshot()

    def resume(self, state: tuple[Floats, Floats, Floats, Any]) -> None:
        """Return to beliefs that were left."""
        self.shares, self.mean, self.covariance, snapshot = state
        self.evidence.restore(snapshot)

    def _alone(self) -> Floats:
        """Fit every task by itself; return the means ``(T, d)``."""
        evidence = self.evidence
        if not self.logistic:
            evidence.set_noise(evidence.squared.noise(self._left(np.arange(evidence.n_tasks))))
        for _ in range(_FIRST_ROUNDS if self.logistic else 0):
            covariance = np.linalg.inv(evidence.precision + self._prior)
            evidence.refit(np.matmul(covariance, evidence.linear[:, :, None])[:, :, 0], covariance)
        found = np.linalg.solve(evidence.precision + self._prior, evidence.linear[:, :, None])
        return np.asarray(found[:, :, 0])

    def _grouped(self, labels: Ints) -> tuple[Floats, Floats]:
        """Return the sums of G_t, plus ``precision``, and of c_t over groups."""
        squared = self.evidence.squared
        G = np.zeros((labels.max() + 1, *squared.gram.shape[1:]))
        c = np.zeros((len(G), squared.cross.shape[1]))
        np.add.at(G, labels, squared.gram[squared.pattern])
        np.add.at(c, labels, squared.cross)
        return G + self.precision * np.eye(G.shape[1]), c

    def _left(self, labels: Ints) -> float:
        """Return the penalised sum of squares of one ridge per group."""
        G, c = self._grouped(labels)
        explained = float((c * np.linalg.solve(G, c[:, :, None])[:, :, 0]).sum())
        return max(float(self.evidence.squared.yy.sum()) - explained, 0.0)

    def _profile(self, labels: Ints) -> float:
        """Return the log evidence of a partition at its best noise variance, up to a constant."""
        squared = self.evidence.squared
        G, _ = self._grouped(labels)
        volume = float(np.linalg.slogdet(G / self.precision)[1].sum())
        noise = squared.noise(self._left(labels))
        rest = self._left(labels) / noise
        return squared.noise_log_prior(noise) - 0.5 * (squared.total * np.log(noise) + rest + volume)

    def _learn_clusters(self) -> None:
        evidence, d = self.evidence, self.evidence.n_features
        weighted = self.shares.T @ evidence.precision.reshape(evidence.n_tasks, -1)
        inverse = np.linalg.inv(weighted.reshape(-1, d, d) + self._prior)
        self.covariance = 0.5 * (inverse + inverse.transpose(0, 2, 1))
        linear = self.shares.T @ evidence.linear
        self.mean = np.asarray(np.matmul(self.covariance, linear[:, :, None])[:, :, 0])

    def round(self) -> float:
        """Improve all beliefs once; return the lower bound they reach."""
        self._learn_clusters()
        sizes = self.shares.sum(axis=0)
        first = 1.0 + sizes
        rest = self.concentration + np.maximum(sizes[::-1].cumsum()[::-1] - sizes, 0.0)
        stay, go = digamma(first) - digamma(first + rest), digamma(rest) - digamma(first + rest)
        log_share = stay + np.concatenate([[0.0], go.cumsum()[:-1]])
        likelihood = self._likelihoods()
        scores = likelihood + log_share
        self.shares = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
        a0 = self.concentration
        sticks = (first - 1.0) * stay + (rest - a0) * go - betaln(first, rest) + betaln(1.0, a0)
        noise = 0.0 if self.logistic else self.evidence.squared.noise_log_prior(self.evidence.noise)
        spread = -float(xlogy(self.shares, self.shares).sum())
        self.fit = float((self.shares * likelihood).sum()) + noise - self._divergence()
        return self.fit + float((self.shares * log_share).sum()) + spread - float(sticks.sum())

    def log_partition(self) -> float:
        """Return the bound for the likeliest clusters as a partition, whose prior does not depend on their order."""
        labels = self.shares.argmax(axis=1)
        return self.fit + self._log_prior(np.bincount(labels))

    def _log_prior(self, sizes: Ints) -> float:
        """Return the log probability of a partition into groups of these sizes, up to a constant."""
        used = sizes[sizes > 0]
        return float(len(used) * np.log(self.concentration) + gammaln(used).sum())

    def _likelihoods(self) -> Floats:
        """Return the expected log likelihood of every task under every cluster, ``(T, K)``."""
        evidence = self.evidence
        second = self.covariance + self.mean[:, :, None] * self.mean[:, None, :]
        quadratic = evidence.precision.reshape(evidence.n_tasks, -1) @ second.reshape(len(second), -1).T
        return np.asarray(evidence.constant[:, None] + evidence.linear @ self.mean.T - 0.5 * quadratic)

    def _divergence(self) -> float:
        """Return the divergence of the clusters' coefficients from their prior."""
        prior = self._prior
        d = len(prior)
        trace = np.einsum("de,ked->k", prior, self.covariance)
        far = np.einsum("kd,de,ke->k", self.mean, prior, self.mean)
        logdet = np.linalg.slogdet(self.covariance)[1] + np.linalg.slogdet(prior)[1]
        return float(0.5 * (trace + far - d - logdet).sum())

    def refit(self) -> None:
        """Improve the noise variance, or the bound of the logistic function and the intercepts."""
        evidence = self.evidence
        mean = self.shares @ self.mean
        between = np.einsum("tk,kd,ke->tde", self.shares, self.mean, self.mean)
        between -= mean[:, :, None] * mean[:, None, :]
        if self.logistic:
            within: Floats = np.tensordot(self.shares, self.covariance, axes=1)
            evidence.refit(mean, within + between)
            return
        # the covariances of the clusters are kept in proportion to the noise, as their prior is
        squared = evidence.squared
        _, rest = squared.residual(mean)
        spread = np.einsum("tde,tde->t", squared.gram[squared.pattern], between)
        penalty = self.precision * float(np.square(self.mean).sum())
        evidence.set_noise(squared.noise(float((rest + spread).sum()) + penalty))

    def probabilities(self, X: Floats, number: Ints) -> Floats:
        """Return P(y = 1) of rows under the mixture of clusters of the task of each row, ``(n,)``."""
        X = X - self.evidence.mean_x[number]
        variance = np.stack([np.einsum("nd,nd->n", X @ S, X) for S in self.covariance], axis=1)
        margin = X @ self.mean.T + self.evidence.bias[number][:, None]  # (n, K)
        each = expit(margin / np.sqrt(1.0 + np.pi / 8.0 * variance))
        return np.asarray((each * self.shares[number]).sum(axis=1))
