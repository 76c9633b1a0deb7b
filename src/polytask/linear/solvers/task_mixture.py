"""Expectation-maximisation for coefficients drawn from a mixture of Gaussians, with the rows integrated out.

    y_t = H_t w_t + noise,  noise ~ N(0, s² I)        H_t: (n_t, d)
    w_t ~ sum_k q_tk N(M_k^T f_t, S_k)                f_t: (p,) features of the task, M_k: (p, d); f_t = 1: plain means
    M_k ~ N(0, b² I)

so that under cluster k the labels of a task are N(H_t M_k^T f_t, H_t S_k H_t^T + s² I). With S_k = L L^T
and B = I + L^T G_t L / s² (Woodbury) only d × d matrices are formed, from the moments G_t = H_t^T H_t and
c_t = H_t^T y_t, and nothing is divided by S_k, which may be singular:

    P^-1 = L B^-1 L^T                                 posterior covariance of w_t
    I_t = (G_t - G_t P^-1 G_t / s²) / s²              information of the labels on the prior mean

Beliefs are q(z_t = k) = r_tk and q(M_k) = N(M_k, V_k); with w_t integrated out the lower bound is

    sum_tk r_tk ( E log q_tk + log N(y_t; H_t M_k^T f_t, .) - tr(I_t V_tk) / 2 - log r_tk ) - KL(q(M) || N(0, b² I)),

V_tk the covariance of M_k^T f_t, which is the log marginal likelihood itself for one cluster. Every
round raises it: r_tk; then M_k, by generalised least squares; then S_k, s² and b² in closed form from
the posterior of w_t. Covariances of the clusters' own have an inverse-Wishart prior about S_0 that is
worth nu tasks:

    S_k = ( sum_t r_tk E (w_t - M_k^T f_t)(...)^T + nu S_0 ) / ( sum_t r_tk + nu ).

The shares of clusters have a uniform Dirichlet prior (integrated out), or are a function of features
of the tasks, q_tk = softmax(U g_t) (gating), with a small squared penalty on U.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import digamma, gammaln, logsumexp, softmax, xlogy

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.solvers.task_evidence import SquaredStatistics, agglomerate, coarse_groups, grouping_evidence

COVARIANCES = ("full", "diagonal", "spherical")
NARROWER = 0.3  # covariance of a few clusters relative to that of one, to begin with
_MOST_TASKS = 150  # that are joined pair by pair
_GATE_PENALTY = 0.01
_GATE_STEPS = 50
_MEMORY = 4  # rounds that are extrapolated from


@dataclass(frozen=True)
class Prior:
    """What a mixture learns.

    Parameters
    ----------
    mean, mean_covariance
        Of M_k, ``(K, p, d)`` and ``(K, p d, p d)``.
    covariance
        S_k, ``(K, d, d)``, or ``(1, d, d)`` if all clusters have one.
    noise
        s².
    breadth
        b².
    log_shares
        E log q_tk, ``(T, K)``.
    gate
        U, ``(K, g)``; without columns where shares do not depend on the task.
    shares_left
        What the prior of the shares adds to the lower bound.
    """

    mean: Floats
    mean_covariance: Floats
    covariance: Floats
    noise: float
    breadth: float
    log_shares: Floats
    gate: Floats
    shares_left: float = 0.0

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.mean)


@dataclass(frozen=True)
class Design:
    """What is given: features of the tasks for the means ``(T, p)`` and for the gate ``(T, g)``, form of S_k.

    Parameters
    ----------
    features, gating
        f_t and g_t; ``gating`` without columns: the shares are the same for all tasks.
    form
        One of :data:`COVARIANCES`.
    strength, centre
        nu and S_0 ``(d, d)``; strength inf: S_k = S_0 fixed.
    """

    features: Floats
    gating: Floats
    form: str = "spherical"
    strength: float = 0.0
    centre: Floats = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class Posterior:
    """Beliefs about the tasks under a prior.

    Parameters
    ----------
    shares
        r_tk, ``(T, K)``.
    value
        The lower bound.
    """

    shares: Floats
    value: float


class TaskMixture:
    """The problem of the module for given moments and task features."""

    def __init__(self, data: SquaredStatistics, design: Design) -> None:
        self.data, self.design = data, design
        self.n_tasks, self.d = data.cross.shape
        self.p = design.features.shape[1]
        # tasks with the same rows and features share all matrices
        keys = np.column_stack([data.pattern, design.features])
        _, first, self.cell = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        self.gram = data.gram[data.pattern[first]]
        self.features = design.features[first]

    # -- one cluster --------------------------------------------------------------------------

    def _matrices(self, prior: Prior, k: int) -> tuple[Floats, Floats, Floats]:
        """Return P^-1, I_t ``(C, d, d)`` and log det B ``(C,)`` of the cells."""
        S = prior.covariance[k if len(prior.covariance) > 1 else 0]
        values, vectors = np.linalg.eigh(S)
        L = vectors * np.sqrt(np.maximum(values, 0.0))
        inner = L.T @ self.gram @ L / prior.noise
        B = np.eye(self.d) + 0.5 * (inner + inner.transpose(0, 2, 1))
        factor = np.linalg.cholesky(B)
        logdet = 2.0 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        half = np.linalg.solve(factor, np.broadcast_to(L.T, B.shape))
        inverse = half.transpose(0, 2, 1) @ half
        side = half @ self.gram
        information = (self.gram - side.transpose(0, 2, 1) @ side / prior.noise) / prior.noise
        return inverse, 0.5 * (information + information.transpose(0, 2, 1)), logdet

    def _means(self, prior: Prior, k: int) -> Floats:
        return np.asarray(self.design.features @ prior.mean[k])

    def _mean_covariances(self, prior: Prior, k: int) -> Floats:
        """Return the covariance of M_k^T f for every cell, ``(C, d, d)``, or ``(1, d, d)`` if it is the same."""
        V = prior.mean_covariance[k].reshape(self.p, self.d, self.p, self.d)
        if self.p == 1 and (self.features == 1.0).all():
            return V[:, :, 0]
        return np.asarray(np.einsum("cp,pdqe,cq->cde", self.features, V, self.features, optimize=True))

    # -- the round ----------------------------------------------------------------------------

    def posterior(self, prior: Prior) -> Posterior:
        """Return the memberships under ``prior`` and the lower bound."""
        scores = np.stack([self._score(prior, k, self._matrices(prior, k)) for k in range(prior.n_clusters)], axis=1)
        return self._memberships(prior, scores)

    def _memberships(self, prior: Prior, scores: Floats) -> Posterior:
        total = scores + prior.log_shares
        shares = np.exp(total - logsumexp(total, axis=1, keepdims=True))
        value = float((shares * total).sum() - xlogy(shares, shares).sum())
        return Posterior(shares, value + prior.shares_left - self._mean_divergence(prior) + self._log_prior(prior))

    def _score(self, prior: Prior, k: int, matrices: tuple[Floats, Floats, Floats]) -> Floats:
        """Return log N(y_t; ...) - tr(I_t V_t) / 2, ``(T,)``."""
        inverse, information, logdet = matrices
        rest, squares = self.data.residual(self._means(prior, k))
        pulled = np.matmul(inverse[self.cell], rest[:, :, None])[:, :, 0] / prior.noise
        fit = (squares - np.einsum("td,td->t", rest, pulled)) / prior.noise
        vague = np.einsum(
            "cde,cde->c", information, np.broadcast_to(self._mean_covariances(prior, k), information.shape)
        )
        free = self.data.n * np.log(2.0 * np.pi * prior.noise) + self.data.log_weight
        return np.asarray(-0.5 * (free + np.maximum(fit, 0.0) + (logdet + vague)[self.cell]))

    def _mean_divergence(self, prior: Prior) -> float:
        """Return KL(q(M) || N(0, b² I))."""
        if not np.isfinite(prior.breadth):
            return 0.0
        size = self.p * self.d
        trace = np.trace(prior.mean_covariance, axis1=1, axis2=2)
        logdet = np.linalg.slogdet(prior.mean_covariance)[1]
        far = np.square(prior.mean).sum(axis=(1, 2))
        parts = (trace + far) / prior.breadth - size - logdet + size * np.log(prior.breadth)
        return float(0.5 * parts.sum())

    def _log_prior(self, prior: Prior) -> float:
        """Return the log density of the noise variance, and that of the covariances relative to S_0."""
        nu = self.design.strength
        noise = self.data.noise_log_prior(prior.noise)
        if nu == 0.0 or not np.isfinite(nu):
            return noise
        ratio = np.linalg.solve(self.design.centre, prior.covariance)
        # tr(S^-1 S_0) and log det(S_0^-1 S)
        away = np.trace(np.linalg.inv(ratio), axis1=1, axis2=2)
        return noise - 0.5 * nu * float((np.linalg.slogdet(ratio)[1] + away - self.d).sum())

    def advance(self, prior: Prior) -> tuple[Prior, Posterior]:
        """Return the prior after one round, and the posterior under ``prior``."""
        matrices = [self._matrices(prior, k) for k in range(prior.n_clusters)]
        scores = np.stack([self._score(prior, k, each) for k, each in enumerate(matrices)], axis=1)
        posterior = self._memberships(prior, scores)
        return self.learn(prior, posterior.shares, matrices), posterior

    def learn(self, prior: Prior, shares: Floats, matrices: list[tuple[Floats, Floats, Floats]] | None = None) -> Prior:
        """Return the prior that is better for given memberships."""
        if matrices is None:
            matrices = [self._matrices(prior, k) for k in range(prior.n_clusters)]
        prior = self._with_shares(prior, shares)
        means, covariances = zip(
            *(self._learn_mean(prior, shares[:, k], each) for k, each in enumerate(matrices)), strict=True
        )
        prior = replace(prior, mean=np.stack(means), mean_covariance=np.stack(covariances))
        spreads, squares = [], 0.0
        for k, each in enumerate(matrices):
            spread, left = self._learn_spread(prior, k, shares[:, k], each)
            spreads.append(spread)
            squares += left
        noise = self.data.noise(squares)
        return replace(
            prior, covariance=self._covariances(prior, spreads, shares), noise=noise, breadth=self._breadth(prior)
        )

    def _learn_mean(self, prior: Prior, r: Floats, matrices: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats]:
        """Return M_k and its covariance by generalised least squares."""
        inverse, information, _ = matrices
        weight = np.bincount(self.cell, weights=r, minlength=len(self.gram))
        outer = weight[:, None, None] * self.features[:, :, None] * self.features[:, None, :]
        size = self.p * self.d
        A = np.einsum("cpq,cde->pdqe", outer, information, optimize=True).reshape(size, size)
        pulled = np.matmul(inverse[self.cell], self.data.cross[:, :, None])[:, :, 0]
        linear = (self.data.cross - self.data.times(pulled) / prior.noise) / prior.noise
        right = np.einsum("t,tp,td->pd", r, self.design.features, linear).reshape(size)
        if np.isfinite(prior.breadth):
            V = np.linalg.inv(A + np.eye(size) / prior.breadth)
            return (V @ right).reshape(self.p, self.d), 0.5 * (V + V.T)
        return (np.linalg.pinv(A, rcond=1e-10, hermitian=True) @ right).reshape(self.p, self.d), np.zeros_like(A)

    def _learn_spread(
        self, prior: Prior, k: int, r: Floats, matrices: tuple[Floats, Floats, Floats]
    ) -> tuple[Floats, float]:
        """Return sums over tasks of r_t E (w - m)(w - m)^T ``(d, d)`` and of r_t E ||y_t - H_t w||²."""
        inverse = matrices[0]
        mean = self._coefficients(prior, k, inverse)
        step = mean - self._means(prior, k)
        weight = np.bincount(self.cell, weights=r, minlength=len(self.gram))
        shrink = inverse @ self.gram / prior.noise
        around = inverse + shrink @ self._mean_covariances(prior, k) @ shrink.transpose(0, 2, 1)
        spread = (step * r[:, None]).T @ step + np.tensordot(weight, around, axes=1)
        _, squares = self.data.residual(mean)
        own = np.einsum("cde,cde->c", self.gram, self._posterior_covariances(prior, k, inverse))
        left = float(r @ squares + weight @ own)
        return np.asarray(spread), left

    def _covariances(self, prior: Prior, spreads: list[Floats], shares: Floats) -> Floats:
        design = self.design
        if not np.isfinite(design.strength):
            return prior.covariance
        if len(prior.covariance) == 1:
            sums, sizes = np.sum(spreads, axis=0)[None], np.array([float(self.n_tasks)])
        else:
            sums, sizes = np.stack(spreads), shares.sum(axis=0)
        if design.strength > 0:
            sums = sums + design.strength * design.centre
        found = sums / np.maximum(sizes + design.strength, 1e-300)[:, None, None]
        return formed(found, design.form)

    def _breadth(self, prior: Prior) -> float:
        if not np.isfinite(prior.breadth):
            return prior.breadth
        total = np.square(prior.mean).sum() + np.trace(prior.mean_covariance, axis1=1, axis2=2).sum()
        return max(float(total) / prior.mean.size, 1e-300)

    # -- shares -------------------------------------------------------------------------------

    def _with_shares(self, prior: Prior, shares: Floats) -> Prior:
        K = prior.n_clusters
        if self.design.gating.shape[1] and K > 1:
            gate, loss = self._learn_gate(prior.gate, shares)
            scores = self.design.gating @ gate.T
            log_shares = scores - logsumexp(scores, axis=1, keepdims=True)
            return replace(prior, gate=gate, log_shares=log_shares, shares_left=-loss)
        sizes = shares.sum(axis=0)
        expected = digamma(1.0 + sizes) - digamma(K + self.n_tasks)
        # KL(Dirichlet(1 + sizes) || Dirichlet(1))
        divergence = gammaln(K + self.n_tasks) - gammaln(1.0 + sizes).sum() - gammaln(K) + sizes @ expected
        return replace(prior, log_shares=np.broadcast_to(expected, shares.shape).copy(), shares_left=-float(divergence))

    def _learn_gate(self, gate: Floats, shares: Floats) -> tuple[Floats, float]:
        """Return U that fits the memberships, and its penalty."""
        g = self.design.gating

        def objective(flat: Floats) -> tuple[float, Floats]:
            U = flat.reshape(gate.shape)
            scores = g @ U.T
            value = float(logsumexp(scores, axis=1).sum() - (shares * scores).sum())
            slope = (softmax(scores, axis=1) - shares).T @ g
            return value + 0.5 * _GATE_PENALTY * float(np.square(U).sum()), (slope + _GATE_PENALTY * U).ravel()

        before, _ = objective(gate.ravel())
        found = minimize(objective, gate.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _GATE_STEPS})
        best = found.x.reshape(gate.shape) if found.fun < before else gate
        return np.asarray(best), 0.5 * _GATE_PENALTY * float(np.square(best).sum())

    # -- results ------------------------------------------------------------------------------

    def coefficients(self, prior: Prior, shares: Floats) -> Floats:
        """Return E w_t, ``(T, d)``."""
        W = np.zeros((self.n_tasks, self.d))
        for k in range(prior.n_clusters):
            W += shares[:, k, None] * self._coefficients(prior, k, self._matrices(prior, k)[0])
        return W

    def expectations(self, prior: Prior) -> tuple[Posterior, Floats, Floats]:
        """Return the posterior, E w_t ``(T, d)`` and E w_t w_t^T ``(T, d, d)``."""
        matrices = [self._matrices(prior, k) for k in range(prior.n_clusters)]
        scores = np.stack([self._score(prior, k, each) for k, each in enumerate(matrices)], axis=1)
        posterior = self._memberships(prior, scores)
        first, second = np.zeros((self.n_tasks, self.d)), np.zeros((self.n_tasks, self.d, self.d))
        for k, (inverse, _, _) in enumerate(matrices):
            r, mean = posterior.shares[:, k], self._coefficients(prior, k, inverse)
            around = self._posterior_covariances(prior, k, inverse)[self.cell]
            first += r[:, None] * mean
            second += r[:, None, None] * (around + mean[:, :, None] * mean[:, None, :])
        return posterior, first, second

    def _coefficients(self, prior: Prior, k: int, inverse: Floats) -> Floats:
        """Return E w_t under cluster k."""
        means = self._means(prior, k)
        rest, _ = self.data.residual(means)
        return np.asarray(means + np.matmul(inverse[self.cell], rest[:, :, None])[:, :, 0] / prior.noise)

    def _posterior_covariances(self, prior: Prior, k: int, inverse: Floats) -> Floats:
        """Return the covariance of w_t under cluster k, ``(C, d, d)``."""
        kept = np.eye(self.d) - inverse @ self.gram / prior.noise
        return np.asarray(inverse + kept @ self._mean_covariances(prior, k) @ kept.transpose(0, 2, 1))


def formed(S: Floats, form: str) -> Floats:
    """Return covariances ``(k, d, d)`` in the form asked for."""
    S = 0.5 * (S + S.transpose(0, 2, 1))
    if form == "full":
        return S
    d = S.shape[1]
    variances = np.diagonal(S, axis1=1, axis2=2)
    if form == "spherical":
        variances = np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape)
    return np.asarray(variances[:, :, None] * np.eye(d))


def plain_design(n_tasks: int) -> Design:
    """Return the design without features of the tasks, with one spherical covariance."""
    return Design(np.ones((n_tasks, 1)), np.zeros((n_tasks, 0)))


def prior_of_one(data: SquaredStatistics, design: Design, *, flat: bool = False) -> Prior:
    """Return the prior of one cluster from which rounds begin; ``flat``: means have no prior (b² = inf)."""
    T, d = data.cross.shape
    p = design.features.shape[1]
    noise, variance = data.start()
    S = design.centre[None] if design.strength > 0 else 0.5 * variance * np.eye(d)[None]
    breadth = np.inf if flat else variance
    V = np.zeros((1, p * d, p * d)) if flat else variance * np.eye(p * d)[None]
    gate = np.zeros((1, design.gating.shape[1]))
    return Prior(np.zeros((1, p, d)), V, np.array(S), noise, breadth, np.zeros((T, 1)), gate)


def partitions(data: SquaredStatistics, one: Prior, most: int, seed: int) -> dict[int, Ints]:
    """Return a partition for every number of clusters up to ``most``, by joining tasks that are alike.

    ``one`` is a prior of one cluster; beyond 150 tasks k-means, with this seed, joins the first.
    """
    d = data.cross.shape[1]
    spread = float(np.trace(one.covariance[0])) / d
    precision, linear = grouping_evidence(data, one.noise, NARROWER * spread)
    prior = np.eye(d) / (spread + one.breadth)
    points = np.linalg.solve(precision + prior, linear[:, :, None])[:, :, 0]
    levels = agglomerate(precision, linear, prior, coarse_groups(points, max(_MOST_TASKS, most), seed))
    return {int(level.labels.max()) + 1: level.labels for level in levels if level.labels.max() < most}


def with_clusters(prior: Prior, labels: Ints, n_clusters: int, *, narrower: float) -> tuple[Prior, Floats]:
    """Return a prior of ``n_clusters`` copies of one cluster with a narrower covariance, and shares for the labels."""
    T = len(labels)
    shares = np.zeros((T, n_clusters))
    shares[np.arange(T), labels] = 1.0
    S = narrower * prior.covariance[:1]
    copies = Prior(
        np.repeat(prior.mean[:1], n_clusters, axis=0),
        np.repeat(prior.mean_covariance[:1], n_clusters, axis=0),
        S,
        prior.noise,
        prior.breadth,
        np.full((T, n_clusters), -np.log(n_clusters)),
        np.zeros((n_clusters, prior.gate.shape[1])),
    )
    return copies, shares


def run(
    advance: Callable[[Prior], tuple[Prior, Posterior]], prior: Prior, *, tol: float, max_iter: int
) -> tuple[Prior, Posterior, list[float]]:
    """Repeat rounds until one raises the bound by at most ``tol``; return prior, its posterior and the bounds.

    Variances approach their best values slowly, so the next ones are extrapolated from the last rounds
    (Anderson acceleration of their logarithms); where the bound is lower there than it was, the plain
    round is taken instead.
    """
    moved, posterior = advance(prior)
    reached = [posterior.value]
    history: list[tuple[Floats, Floats]] = []
    while len(reached) <= max_iter:
        history = [*history[-_MEMORY:], (_logs(prior), _logs(moved))]
        bold = _with_logs(moved, _extrapolated(history)) if len(history) > 1 else moved
        after, found = advance(bold)
        if found.value < reached[-1]:
            bold, history = moved, history[-1:]
            after, found = advance(bold)
        gain = found.value - reached[-1]
        prior, moved, posterior = bold, after, found
        reached.append(found.value)
        if gain <= tol:
            break
    return prior, posterior, reached


def _logs(prior: Prior) -> Floats:
    """Return the logarithms of the variances: of each covariance, of the noise, of the means."""
    spread = np.trace(prior.covariance, axis1=1, axis2=2)
    breadth = [prior.breadth] if np.isfinite(prior.breadth) else []
    return np.log(np.maximum(np.concatenate([spread, [prior.noise], breadth]), 1e-300))


def _with_logs(prior: Prior, logs: Floats) -> Prior:
    """Return the prior with variances that have these logarithms, changed by no more than a factor of e^10."""
    factor = np.exp(np.clip(logs - _logs(prior), -10.0, 10.0))
    K = len(prior.covariance)
    breadth = prior.breadth * float(factor[K + 1]) if np.isfinite(prior.breadth) else prior.breadth
    covariance = prior.covariance * factor[:K, None, None]
    return replace(prior, covariance=covariance, noise=prior.noise * float(factor[K]), breadth=breadth)


def _extrapolated(history: list[tuple[Floats, Floats]]) -> Floats:
    """Return where the rounds lead from the points before and after some of them."""
    after = np.stack([step[1] for step in history])
    change = after - np.stack([step[0] for step in history])
    weights = np.linalg.lstsq(np.diff(change, axis=0).T, change[-1], rcond=1e-10)[0]
    return np.asarray(after[-1] - weights @ np.diff(after, axis=0))
