"""What the labels of each task say about its coefficients, as quadratics; the common part of the Bayesian methods.

    log p(y_t | w)  >=  const_t + h_t^T w - 1/2 w^T A_t w                     w: (d,), A_t: (d, d)

Squared loss, y = x^T w + b + noise of variance s²: exact, with A_t = G_t / s² and h_t = c_t / s² from
the moments of the task. An intercept of the task's own has a flat prior and is integrated out: the
moments are those about the means, and one row less counts. The noise variance has an inverse-gamma
prior that is worth one row and expects half of the targets' variance.

Logistic loss: the bound of Jaakkola & Jordan with one parameter xi_i per row,

    log sigmoid(z) >= log sigmoid(xi) + (z - xi) / 2 - lam(xi) (z² - xi²),    lam(xi) = tanh(xi / 2) / (4 xi),

so A_t = 2 sum_i lam(xi_i) x_i x_i^T and h_t = sum_i (y_i - 1/2 - 2 lam(xi_i) b_t) x_i. Given what is
believed of w the best parameters are xi_i² = E (x_i^T w + b_t)², and the best intercept is closed form.

Jaakkola & Jordan, Bayesian parameter estimation via variational methods, Statistics and Computing 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.moments import Block, Moments

_NOISE_ROWS = 1.0  # what the prior of the noise is worth

_ROUNDS_ALONE = 10


class SquaredStatistics:
    """What tasks with squared loss say, from their moments.

    Parameters
    ----------
    moments
        About the means where every task has an intercept of its own, otherwise about zero.
    own_intercepts
        Whether every task has an intercept of its own, with a flat prior, integrated out.

    Attributes
    ----------
    gram, pattern
        G_p ``(P, d, d)`` and which of them each task has, ``(T,)``.
    cross, yy, n
        c_t ``(T, d)``, the sum of squares of y_t ``(T,)`` and the number of rows that count ``(T,)``.
    """

    def __init__(self, moments: Moments, *, own_intercepts: bool) -> None:
        self.mean_x, self.mean_y = moments.mean_x[moments.pattern], moments.mean_y
        self.gram, self.pattern = moments.gram, moments.pattern
        self.cross, self.yy = moments.cross, moments.yy
        n = moments.n
        self.n: Floats = np.asarray(np.maximum(n - float(own_intercepts), 0.0))
        self.log_weight = np.where(n > 0, np.log(np.maximum(n, 1e-300)), 0.0) * float(own_intercepts)

    @property
    def total(self) -> float:
        """Number of rows that count, at least a tiny number."""
        return max(float(self.n.sum()), 1e-300)

    @property
    def expected_noise(self) -> float:
        """Half of the targets' variance (1 if there is none): what the prior of the noise variance expects."""
        squares = float(self.yy.sum())
        return 0.5 * squares / self.total if squares > 0 and self.n.any() else 1.0

    def noise(self, squares: float) -> float:
        """Return the best noise variance for an expected sum of squared residuals."""
        return (squares + _NOISE_ROWS * self.expected_noise) / (float(self.n.sum()) + _NOISE_ROWS)

    def noise_log_prior(self, noise: float) -> float:
        """Return the log density of a noise variance relative to that expected, which is worth one row.

        It keeps the likelihood finite where coefficients fit all rows.
        """
        ratio = self.expected_noise / noise
        return -0.5 * _NOISE_ROWS * float(ratio - np.log(ratio) - 1.0)

    def noise_slope(self, squares: float, noise: float) -> float:
        """Return the slope, by log variance, of the log likelihood of all rows and the log prior."""
        rows = float(self.n.sum()) + _NOISE_ROWS
        return 0.5 * rows * (self.noise(squares) / noise - 1.0)

    def residual(self, W: Floats) -> tuple[Floats, Floats]:
        """Return c_t - G_t w_t ``(T, d)`` and the sum of squared residuals ``(T,)`` at ``W`` ``(T, d)``."""
        rest = self.cross - self.times(W)
        squares = self.yy - np.einsum("td,td->t", W, self.cross + rest)
        return rest, np.asarray(np.maximum(squares, 0.0))

    def times(self, W: Floats) -> Floats:
        """Return G_t w_t for every task, ``(T, d)``."""
        return np.asarray(np.matmul(self.gram[self.pattern], W[:, :, None])[:, :, 0])

    def constant(self, noise: float) -> Floats:
        """Return log p(y_t | w = 0), ``(T,)``."""
        return np.asarray(-0.5 * (self.n * np.log(2.0 * np.pi * noise) + self.yy / noise + self.log_weight))

    def start(self) -> tuple[float, float]:
        """Return a noise variance and a variance of coefficients that explain half of the targets' squares each."""
        noise = self.expected_noise
        spread = float(np.trace(self.gram, axis1=1, axis2=2)[self.pattern].sum())
        return noise, noise * self.total / spread if spread > 0 and self.n.any() else 1.0


class _LogisticRows:
    """A block of rows with logistic tasks, the parameters xi of the bound ``(m, k)`` and lam(xi)."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.xi = np.ones_like(block.Y)

    @property
    def slope(self) -> Floats:
        """Return lam(xi)."""
        xi = np.maximum(self.xi, 1e-6)
        return np.asarray(np.tanh(0.5 * xi) / (4.0 * xi))


class TaskEvidence:
    """The quadratics of all tasks; see the module.

    Parameters
    ----------
    squared
        What the tasks with squared loss say; the others have no rows there.
    rows
        The rows of the tasks with logistic loss.
    logistic
        Which tasks have logistic loss, ``(T,)``.
    own_intercepts
        Whether every task has an intercept of its own.

    Attributes
    ----------
    precision, linear, constant
        A_t ``(T, d, d)``, h_t ``(T, d)`` and const_t ``(T,)``.
    noise
        Variance of the noise of tasks with squared loss.
    bias, mean_x
        Score of each task of logistic loss ``(T,)`` at its mean inputs ``(T, d)``; with intercepts of their own
        the quadratics are about these, so that they do not depend on other tasks.
    """

    precision: Floats
    linear: Floats
    constant: Floats

    def __init__(
        self,
        squared: SquaredStatistics,
        rows: Sequence[Block],
        *,
        logistic: NDArray[np.bool_],
        own_intercepts: bool,
    ) -> None:
        self.n_tasks, self.n_features = squared.cross.shape
        self.own_intercepts = own_intercepts
        self.logistic = np.asarray(logistic, dtype=np.bool_)
        self.squared = squared
        self.mean_x = squared.mean_x.copy()
        self.rows = []
        for block in rows:
            mean = block.weights @ block.X / block.total if own_intercepts else np.zeros(self.n_features)
            self.mean_x[block.outputs] = mean
            self.rows.append(_LogisticRows(Block(block.X - mean, block.weights, block.Y, block.outputs)))
        self.bias = np.zeros(self.n_tasks)  # of logistic tasks
        self.noise = self.squared.start()[0]
        if own_intercepts:
            for block in rows:
                shares = np.clip(block.weights @ block.Y / block.total, 1e-3, 1.0 - 1e-3)
                self.bias[block.outputs] = np.log(shares / (1.0 - shares))
        self._assemble()

    def refit(self, mean: Floats, covariance: NDArray[Any]) -> None:
        """Improve noise, xi and intercepts for beliefs about the coefficients, ``(T, d)`` and ``(T, d, d)``.

        The expected bound does not fall.
        """
        used = ~self.logistic
        if used.any() and self.squared.n.sum() > 0:
            _, rest = self.squared.residual(mean)
            spread = np.einsum("tde,tde->t", self.squared.gram[self.squared.pattern], covariance)
            self.noise = self.squared.noise(float((rest + spread)[used].sum()))
        for rows in self.rows:
            block, out = rows.block, rows.block.outputs
            margin = block.X @ mean[out].T
            for column, task in enumerate(out):
                variance = np.einsum("nd,nd->n", block.X @ covariance[task], block.X)
                centre = margin[:, column] + self.bias[task]
                rows.xi[:, column] = np.sqrt(np.maximum(variance, 0.0) + np.square(centre))
            if self.own_intercepts:
                slope = rows.slope
                top = block.weights @ (block.Y - 0.5 - 2.0 * slope * margin)
                self.bias[out] = top / (2.0 * (block.weights @ slope))
        self._assemble()

    def _assemble(self) -> None:
        squared = self.squared
        self.linear = squared.cross / self.noise
        self.precision = squared.gram[squared.pattern] / self.noise
        self.constant = squared.constant(self.noise)
        for rows in self.rows:
            block, out = rows.block, rows.block.outputs
            slope, b = rows.slope, self.bias[out]
            self.linear[out] = (block.weights[:, None] * (block.Y - 0.5 - 2.0 * slope * b)).T @ block.X
            for column, task in enumerate(out):
                weighted = block.X * (2.0 * block.weights * slope[:, column])[:, None]
                self.precision[task] = weighted.T @ block.X
            free = np.log(expit(rows.xi)) - 0.5 * rows.xi + slope * np.square(rows.xi)
            self.constant[out] = block.weights @ (free + (block.Y - 0.5) * b - slope * np.square(b))

    def set_noise(self, noise: float) -> None:
        """Set the variance of the noise."""
        self.noise = noise
        self._assemble()

    def snapshot(self) -> tuple[float, Floats, list[Floats]]:
        """Return what :meth:`refit` changes."""
        return self.noise, self.bias.copy(), [rows.xi.copy() for rows in self.rows]

    def restore(self, snapshot: tuple[float, Floats, list[Floats]]) -> None:
        """Undo what :meth:`refit` has changed since the snapshot."""
        self.noise, self.bias = snapshot[0], snapshot[1].copy()
        for rows, xi in zip(self.rows, snapshot[2], strict=True):
            rows.xi = xi.copy()
        self._assemble()

    def intercepts(self, mean: Floats) -> Floats:
        """Return the intercepts of the tasks' own, ``(T,)``: of squared loss the expected ones at ``mean``."""
        if not self.own_intercepts:
            return np.zeros(self.n_tasks)
        level = np.where(self.logistic, self.bias, self.squared.mean_y)
        return np.asarray(level - np.einsum("td,td->t", self.mean_x, mean))


def fit_alone(evidence: TaskEvidence) -> Floats:
    """Fit every task by itself with a prior of unit signal; return the means ``(T, d)``."""
    used = ~evidence.logistic
    variance = np.where(used, evidence.squared.start()[1], 1.0)
    prior = np.eye(evidence.n_features) / variance[:, None, None]
    for _ in range(_ROUNDS_ALONE if evidence.rows else 0):
        covariance = np.linalg.inv(evidence.precision + prior)
        evidence.refit(np.matmul(covariance, evidence.linear[:, :, None])[:, :, 0], covariance)
    return np.asarray(np.linalg.solve(evidence.precision + prior, evidence.linear[:, :, None])[:, :, 0])


def group_evidence(precision: Floats, linear: Floats, prior: Floats) -> Floats:
    """Return log of the integral of exp(h^T w - 1/2 w^T J w) over w ~ N(0, prior^-1), for each J ``(k, d, d)``."""
    factor = np.linalg.cholesky(precision + prior)
    half = np.linalg.solve(factor, linear[:, :, None])[:, :, 0]
    logdet = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    base = np.log(np.diag(np.linalg.cholesky(prior))).sum()
    return np.asarray(0.5 * np.square(half).sum(axis=1) - logdet + base)


def grouping_evidence(data: SquaredStatistics, noise: float, spread: float) -> tuple[Floats, Floats]:
    """Return the quadratics of the centre of a group, about which tasks have coefficients of variance ``spread``.

    J_t = G_t (I + spread G_t / s²)^-1 / s² ``(T, d, d)`` and h_t ``(T, d)``, s² the variance of the noise.
    """
    gram = data.gram[data.pattern]
    shrink = np.linalg.inv(np.eye(gram.shape[1]) + spread / noise * gram)
    J = gram @ shrink / noise
    h = np.matmul(shrink, data.cross[:, :, None])[:, :, 0] / noise
    return 0.5 * (J + J.transpose(0, 2, 1)), np.asarray(h)


_CHUNK = 4_000_000  # numbers in the matrices of one round


@dataclass(frozen=True)
class Level:
    """One partition that joining goes through.

    Parameters
    ----------
    labels
        Group of each task, numbered by first appearance, ``(T,)``.
    value
        Sum of the groups' log evidence.
    ties
        Log of how many pairs would have done as well in the join that led here: log sum exp(gain - best gain).
    """

    labels: Ints
    value: float
    ties: float


def agglomerate(precision: Floats, linear: Floats, prior: Floats, start: Ints) -> list[Level]:
    """Join groups of tasks that share one w ~ N(0, prior^-1), best pair first, down to one group.

    Returns the partitions with every number of groups, the most first. ``start`` holds the groups to begin with.
    """
    labels = first_appearance(start)
    J = np.zeros((labels.max() + 1, *precision.shape[1:]))
    h = np.zeros((len(J), linear.shape[1]))
    np.add.at(J, labels, precision)
    np.add.at(h, labels, linear)
    alone = group_evidence(J, h, prior)
    gain = np.full((len(J), len(J)), -np.inf)
    for group in range(len(J) - 1):
        others = np.arange(group + 1, len(J))
        gain[group, others] = _gains(J, h, alone, group, others, prior)
    alive = np.ones(len(J), dtype=np.bool_)
    found = [Level(labels.copy(), float(alone.sum()), 0.0)]
    while alive.sum() > 1:
        ties = float(logsumexp(gain) - gain.max())
        keep, drop = (int(number) for number in np.unravel_index(int(np.argmax(gain)), gain.shape))
        J[keep] += J[drop]
        h[keep] += h[drop]
        alone[keep] = group_evidence(J[[keep]], h[[keep]], prior)[0]
        alive[drop] = False
        gain[drop] = gain[:, drop] = -np.inf
        others = np.flatnonzero(alive)
        others = others[others != keep]
        if len(others):
            gain[np.minimum(keep, others), np.maximum(keep, others)] = _gains(J, h, alone, keep, others, prior)
        labels[labels == drop] = keep
        found.append(Level(first_appearance(labels), float(alone[alive].sum()), ties))
    return found


def _gains(J: Floats, h: Floats, alone: Floats, group: int, others: Ints, prior: Floats) -> Floats:
    """Return what joining ``group`` with each of the others adds to the evidence."""
    size = max(1, _CHUNK // J[0].size)
    parts = [others[begin : begin + size] for begin in range(0, len(others), size)]
    joint = np.concatenate([group_evidence(J[part] + J[group], h[part] + h[group], prior) for part in parts])
    return np.asarray(joint - alone[others] - alone[group])


def first_appearance(labels: Ints) -> Ints:
    """Return the labels renumbered in the order in which they appear."""
    _, first, number = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[number], dtype=np.int64)


def coarse_groups(points: Floats, most: int, seed: int) -> Ints:
    """Return every task alone, or k-means groups of ``points`` ``(T, d)`` where there are more than ``most`` tasks."""
    if len(points) <= most:
        return np.arange(len(points))
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(most, n_init=1, random_state=seed).fit_predict(points), dtype=np.int64)
