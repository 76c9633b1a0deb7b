"""Bayesian task clustering and gating: tasks share hidden features and a prior of what they make of them.

    y_t = h(X_t) a_t + b_t + noise of variance s²,     h(x) = tanh(V [x; 1])  (or h(x) = x)
    a_t ~ sum_k q_tk N(m_tk, S_k)

h(X_t): (n_t, h hidden units), V: (h, d + 1), shared. The prior of a task is one of

    "clusters"   q_tk = q_k,                  m_tk = m_k
    "gated"      q_tk = softmax(U f_t)_k,     m_tk = m_k        what a task is like says in which cluster it is
    "means"      q_tk = q_k,                  m_tk = M_k f_t    ... and what its coefficients may be

with features f_t of the task and a constant. The a_t are integrated out; everything else is learned
by expectation-maximisation of the lower bound of :mod:`~polytask.linear.solvers.task_mixture`, in
turn with V, which follows the gradient of that bound (L-BFGS) with a penalty decay / 2 ||V||², inputs
in units of their standard deviations. It has several maxima in V: of a few starts the best is kept.

Limits: one cluster and S -> 0: one model for all tasks; S -> inf: least squares per task.

Bakker & Heskes, Task clustering and gating for Bayesian multitask learning, JMLR 2003.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.bayesian import BayesianEstimator, membership, used_clusters
from polytask.linear.estimator import warn_unconverged
from polytask.linear.layout import task_numbers
from polytask.linear.moments import Block, Moments
from polytask.linear.parameters import count, not_negative, positive
from polytask.linear.penalised import names_of
from polytask.linear.solvers.task_evidence import SquaredStatistics, TaskEvidence
from polytask.linear.solvers.task_mixture import (
    COVARIANCES,
    NARROWER,
    Design,
    Posterior,
    Prior,
    TaskMixture,
    partitions,
    prior_of_one,
    run,
    with_clusters,
)

PRIORS = ("clusters", "gated", "means")
_ROUNDS = 20  # of expectation-maximisation between two searches for V
_STEPS = 10  # of such a search


class TaskGating(BayesianEstimator):
    """Models of tasks with shared hidden features and clusters of tasks (see the module).

    Parameters
    ----------
    n_clusters
        Number of clusters K.
    prior
        ``"clusters"``, ``"gated"`` or ``"means"``; the last two need ``task_features``.
    task_features
        Features of the tasks: an array ``(n_tasks, p)`` in the order of ``tasks_``, or a mapping from task
        label to p numbers; standardised inside.
    n_hidden
        Number of hidden units; None: the inputs themselves are the features.
    covariance
        ``"full"`` or ``"diagonal"``: of each cluster's own; ``"spherical"``: one tau² I for all.
    prior_tasks
        How many tasks the inverse-Wishart prior of a covariance is worth, positive; None: dimension + 2.
    spread
        Standard deviation of coefficients about their prior mean, the same for all; None: learned.
    decay
        Strength of the penalty on V, not negative.
    fit_intercept
        Whether there are intercepts.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.bayesian`.
    tol
        Stop when a round raises the bound by less than ``tol`` per task.
    max_iter
        Largest number of rounds of a stage (one cluster, then all).
    random_state
        Seed of the hidden units to begin with, and of the k-means that forms the first groups of more
        than 150 tasks.
    n_starts
        With hidden units: number of starts, of which that with the highest bound is kept.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features or n_hidden)
        Posterior means of the coefficients a_t.
    intercept_ : ndarray of shape (n_tasks,)
    hidden_ : ndarray of shape (n_hidden, n_features + 1) or None
        V, for standardised inputs.
    shares_, labels_, n_clusters_, covariances_, noise_variance_, relations_
        As of :class:`~polytask.linear.gaussian_mixture_tasks.GaussianMixtureTasks`.
    means_ : ndarray of shape (n_clusters_, 1 or p + 1, n_coefficients)
        m_k, or M_k with the constant first.
    gate_ : ndarray of shape (n_clusters, p + 1) or None
        U, the constant first.
    evidence_ : ndarray of shape (n_iter_ + 1,)
        Lower bound of the log marginal likelihood less the penalty on V, through the last stage.
    n_iter_, tasks_, logistic_

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 3))
    >>> f = np.array([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]])
    >>> Y = X @ np.where(f > 0.5, [2.0, 0.0, 1.0], [-1.0, 1.0, 0.0]).T + 0.5 * rng.normal(size=(40, 6))
    >>> TaskGating(2, prior="gated", task_features=f).fit(X, Y).labels_
    array([0, 0, 0, 1, 1, 1])
    """

    def __init__(
        self,
        n_clusters: int = 2,
        *,
        prior: str = "clusters",
        task_features: Any = None,
        n_hidden: int | None = None,
        covariance: str = "diagonal",
        prior_tasks: float | None = None,
        spread: float | None = None,
        decay: float = 0.1,
        fit_intercept: bool = True,
        intercepts: str = "own",
        tol: float = 1e-4,
        max_iter: int = 1000,
        random_state: int = 0,
        n_starts: int = 3,
    ) -> None:
        self.n_clusters = n_clusters
        self.prior = prior
        self.task_features = task_features
        self.n_hidden = n_hidden
        self.covariance = covariance
        self.prior_tasks = prior_tasks
        self.spread = spread
        self.decay = decay
        self.fit_intercept = fit_intercept
        self.intercepts = intercepts
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_starts = n_starts

    def _check_common(self) -> None:
        super()._check_common()
        count("n_clusters", self.n_clusters, "the number of clusters")
        if self.prior not in PRIORS:
            raise InputError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")
        if self.prior != "clusters" and self.task_features is None:
            raise InputError(f'prior="{self.prior}" needs task_features: one row of numbers per task')
        if self.n_hidden is not None:
            count("n_hidden", self.n_hidden, "the number of hidden units")
        count("n_starts", self.n_starts, "the number of starts of the hidden units")
        if self.covariance not in COVARIANCES:
            raise InputError(f"covariance must be one of {', '.join(COVARIANCES)}, got {self.covariance!r}")
        if self.prior_tasks is not None:
            positive("prior_tasks", self.prior_tasks, "how many tasks the prior of a covariance is worth")
        if self.spread is not None:
            positive("spread", self.spread, "the standard deviation of coefficients about their prior mean")
        not_negative("decay", self.decay, "the strength of the penalty on the hidden units")

    def solve(self, blocks: Sequence[Block], n_features: int) -> None:
        """Fit given rows of the tasks ``tasks_``, which is what :meth:`fit` does with its data."""
        if self.n_hidden is None:
            super().solve(blocks, n_features)
            return
        rows = list(blocks)  # moments are not enough
        moments = Moments.of_blocks(rows, len(self.tasks_), n_features)
        self._shift, level = self._origin(moments, [])
        centred = [replace(block, X=block.X - self._shift, Y=block.Y - level[block.outputs]) for block in rows]
        self._relations = None
        shape = (int(self.n_hidden), n_features)
        intercepts = (self._own, self._coupled)
        seeds: list[int | list[int]] = [
            int(self.random_state),
            *([int(self.random_state), k] for k in range(1, int(self.n_starts))),
        ]
        starts = (_Layer(centred, self._statistics, len(self.tasks_), intercepts, shape, seed) for seed in seeds)
        best = max(map(self._learned, starts), key=lambda found: found.values[-1])
        assert isinstance(best.layer, _Layer)
        self._scale = best.layer.scale
        W, own = self._finish(best)
        self.coef_ = np.ascontiguousarray(W[:, : self.n_hidden])
        self.intercept_ = np.asarray((W[:, self.n_hidden] if self._coupled else own) + level)

    def _learn(self, evidence: TaskEvidence) -> tuple[Floats, Floats]:
        return self._finish(self._learned(_Given(evidence.squared)))

    def _inputs(self, X: Any, *, reset: bool) -> Any:
        """Return the checked inputs of a fit, and the hidden features of those to predict from."""
        X = super()._inputs(X, reset=reset)
        if reset or self.n_hidden is None:
            return X
        Z = (np.asarray(X, dtype=np.float64) - self._shift) / self._scale
        return np.tanh(Z @ self._hidden[:, :-1].T + self._hidden[:, -1])

    def _learned(self, layer: _Given) -> _Learned:
        """Return what is learned from the features of ``layer``, which change on the way."""
        features = self._task_features()
        T = len(self.tasks_)
        constant, none = np.ones((T, 1)), np.zeros((T, 0))
        design = Design(features if self.prior == "means" else constant, features if self.prior == "gated" else none)
        if self.spread is not None:
            design = replace(design, strength=np.inf, centre=float(self.spread) ** 2 * np.eye(layer.width))
        start = prior_of_one(layer.data, design)
        prior = self._alternate(layer, design, start).prior
        K = min(int(self.n_clusters), T)
        nu = layer.width + 2.0 if self.prior_tasks is None else float(self.prior_tasks)
        own = self.covariance != "spherical" and self.spread is None
        if K > 1:
            labels = partitions(layer.data, prior, K, int(self.random_state))[K]
            prior, shares = with_clusters(prior, labels, K, narrower=1.0 if self.spread else NARROWER)
            prior = TaskMixture(layer.data, design).learn(prior, shares)
            prior, _, _ = run(TaskMixture(layer.data, design).advance, prior, tol=self._least(T), max_iter=_ROUNDS)
        if own:
            design = replace(design, form=self.covariance, strength=nu, centre=prior.covariance[0])
            prior = replace(prior, covariance=np.repeat(prior.covariance, K, axis=0))
        return self._alternate(layer, design, prior)

    def _finish(self, best: _Learned) -> tuple[Floats, Floats]:
        """Set what was learned; return the coefficients and the tasks' own intercepts."""
        layer, design, prior, posterior, values = best.layer, best.design, best.prior, best.posterior, best.values
        self.evidence_ = np.array(values)
        self.n_iter_ = len(values) - 1
        least = self._least(len(self.tasks_))
        if len(values) > 1 and self.n_iter_ >= self.max_iter and values[-1] - values[-2] > least:
            gain = values[-1] - values[-2]
            warn_unconverged(type(self).__name__, gain, least, "a gain of evidence of", self.max_iter)
        self.hidden_ = layer.V
        self._hidden = np.zeros((0, 0)) if layer.V is None else layer.V
        self.shares_, self.labels_ = used_clusters(posterior.shares)
        self.n_clusters_ = self.shares_.shape[1]
        likeliest = posterior.shares.argmax(axis=1)
        order = [int(likeliest[np.argmax(self.labels_ == k)]) for k in range(self.n_clusters_)]
        self.means_ = prior.mean[order]
        self.covariances_ = np.broadcast_to(prior.covariance, (prior.n_clusters, layer.width, layer.width))[order]
        self.gate_ = prior.gate[order] if self.prior == "gated" else None
        self.noise_variance_ = float(prior.noise)
        self.mean_variance_ = float(prior.breadth)
        data = layer.data
        W = TaskMixture(data, design).coefficients(prior, posterior.shares)
        return W, data.mean_y - np.einsum("td,td->t", data.mean_x, W) if self._own else np.zeros(len(W))

    def _least(self, T: int) -> float:
        return float(self.tol) * T

    def _alternate(self, layer: _Given, design: Design, prior: Prior) -> _Learned:
        """Learn the prior and the hidden units in turn until the bound stands still."""
        least, limit = self._least(len(self.tasks_)), int(self.max_iter)
        values: list[float] = []
        while True:
            rounds = limit if layer.V is None else min(_ROUNDS, limit)
            problem = TaskMixture(layer.data, design)
            prior, posterior, reached = run(problem.advance, prior, tol=least, max_iter=rounds)
            values.extend(value - layer.penalty(self.decay) for value in reached)
            gain = values[-1] - values[max(len(values) - len(reached) - 1, 0)]
            if layer.V is None or gain <= least or len(values) > limit:
                break
            layer.search(prior, design, self.decay)
        return _Learned(layer, design, prior, posterior, values)

    def _task_features(self) -> Floats:
        """Return the standardised features of the tasks after a constant, ``(T, p + 1)``."""
        T = len(self.tasks_)
        if self.prior == "clusters":
            return np.ones((T, 1))
        given = self.task_features
        if isinstance(given, Mapping):
            labels = list(given)
            number = task_numbers(np.array(labels), self.tasks_, len(labels))
            missing = np.setdiff1d(np.arange(T), number)
            if len(missing):
                name = self.tasks_[missing[0] : missing[0] + 1].tolist()[0]
                raise InputError(f"task_features has no entry for task {name!r}; give one for each of the {T} tasks")
            rows = np.array([given[label] for label in labels], dtype=np.float64)[np.argsort(number)]
        else:
            rows = np.asarray(given, dtype=np.float64)
        if rows.ndim != 2 or len(rows) != T or not np.isfinite(rows).all():
            raise InputError(f"task_features has shape {rows.shape}; give finite numbers ({T}, p), one row per task")
        scale = rows.std(axis=0)
        return np.column_stack([np.ones(T), (rows - rows.mean(axis=0)) / np.where(scale > 0, scale, 1.0)])

    def _relate(self) -> dict[str, Relation]:
        found = membership(self.shares_, self.tasks_)
        if self.gate_ is not None:
            clusters = found["clusters"].rows
            columns = ("constant", *(f"feature {number + 1}" for number in range(self.gate_.shape[1] - 1)))
            found["gate"] = Relation(
                "coefficients",
                self.gate_.T,
                columns,
                clusters,
                "Change of a cluster's log-odds per standard deviation of a feature of the task.",
            )
        if self.hidden_ is not None:
            units = tuple(f"unit {number + 1}" for number in range(len(self.hidden_)))
            found["hidden coefficients"] = Relation(
                "coefficients", self.coef_.T, units, names_of(self.tasks_), "What every task makes of the hidden units."
            )
        return found


@dataclass(frozen=True)
class _Learned:
    """What one start led to, and the bounds of its last stage less the penalty on V."""

    layer: _Given
    design: Design
    prior: Prior
    posterior: Posterior
    values: list[float]


class _Given:
    """Features that are given: the inputs themselves, by their moments."""

    V: Floats | None = None

    def __init__(self, data: SquaredStatistics) -> None:
        self.data, self.width = data, data.cross.shape[1]
        self.scale = np.ones(self.width)

    def penalty(self, decay: float) -> float:  # noqa: ARG002 - there are no hidden units
        """Return the penalty on the hidden units."""
        return 0.0

    def search(self, prior: Prior, design: Design, decay: float) -> None:
        """Improve the hidden units."""


class _Layer(_Given):
    """Rows of the tasks, hidden units V on them, and what their moments say.

    Parameters
    ----------
    blocks
        Rows about their means.
    statistics
        Makes of moments what they say about coefficients; coupled intercepts come last.
    n_tasks
        T.
    intercepts
        Whether tasks have intercepts of their own, and whether these are coupled.
    shape
        Hidden units and inputs.
    seed
        Of the hidden units to begin with.
    """

    V: Floats

    def __init__(
        self,
        blocks: Sequence[Block],
        statistics: Callable[[Moments], SquaredStatistics],
        n_tasks: int,
        intercepts: tuple[bool, bool],
        shape: tuple[int, int],
        seed: int | list[int],
    ) -> None:
        self.n_tasks, self.statistics = n_tasks, statistics
        self.own, self.coupled = intercepts
        n_hidden, d = shape
        total = max(sum(block.total for block in blocks), 1e-300)
        squares = sum((block.weights @ np.square(block.X) for block in blocks), np.zeros(d))
        spread = np.sqrt(squares / total)
        self.scale = np.where(spread > 0, spread, 1.0)
        self.blocks = list(blocks)
        ends = np.cumsum([0, *(len(block.X) for block in self.blocks)]).tolist()
        self.places = [slice(start, end) for start, end in pairwise(ends)]
        self.rows = np.ones((ends[-1], d + 1))  # of all blocks, with a constant
        for place, block in zip(self.places, self.blocks, strict=True):
            self.rows[place, :d] = block.X / self.scale
        self.width = n_hidden + self.coupled
        rng = np.random.default_rng(seed)
        self.V = rng.normal(size=(n_hidden, d + 1)) / np.sqrt(d + 1.0)
        self.data, _ = self._read(self.V)

    def _read(self, V: Floats) -> tuple[SquaredStatistics, Floats]:
        """Return what the moments of the hidden features say, and the features of all rows ``(n, h)``."""
        hidden = np.tanh(self.rows @ V.T)
        blocks = [replace(block, X=hidden[place]) for place, block in zip(self.places, self.blocks, strict=True)]
        return self.statistics(Moments.of_blocks(blocks, self.n_tasks, len(V))), hidden

    def penalty(self, decay: float) -> float:
        """Return the penalty on the hidden units."""
        return 0.5 * float(decay) * float(np.square(self.V).sum())

    def value_and_gradient(self, V: Floats, prior: Prior, design: Design, decay: float) -> tuple[float, Floats]:
        """Return the bound less the penalty at V, and its gradient, with everything else as in ``prior``."""
        data, hidden = self._read(V)
        problem = TaskMixture(data, design)
        posterior, first, second = problem.expectations(prior)
        h = len(V)
        slope = np.empty((len(hidden), h))
        for place, block in zip(self.places, self.blocks, strict=True):
            out, a, H, Y = block.outputs, block.weights, hidden[place], block.Y
            if self.own:
                H, Y = H - a @ H / block.total, Y - a @ Y / block.total
            elif self.coupled:
                H = np.column_stack([H, np.ones(len(H))])
            pull = Y @ first[out, :h] - H @ second[out, :, :h].sum(axis=0)
            slope[place] = pull * (a / prior.noise)[:, None]
        slope *= 1.0 - np.square(hidden)
        gradient = slope.T @ self.rows - float(decay) * V
        return posterior.value - 0.5 * float(decay) * float(np.square(V).sum()), gradient

    def search(self, prior: Prior, design: Design, decay: float) -> None:
        """Move V uphill; the bound less the penalty does not fall."""
        shape = self.V.shape

        def objective(flat: Floats) -> tuple[float, Floats]:
            value, gradient = self.value_and_gradient(flat.reshape(shape), prior, design, decay)
            return -value, -gradient.ravel()

        before, _ = objective(self.V.ravel())
        found = minimize(objective, self.V.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
        if found.fun < before:
            self.V = np.asarray(found.x.reshape(shape))
            self.data, _ = self._read(self.V)
