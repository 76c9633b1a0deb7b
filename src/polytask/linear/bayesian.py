"""What the Bayesian estimators share: intercepts, what the data say, what was learned about the tasks.

They maximise (a bound of) the marginal likelihood, in which every labelled row counts the same, so
there is no weighting of tasks.

Intercepts: ``"own"``: each task has its own, with a flat prior, integrated out (squared loss) or
solved for (logistic loss). ``"coupled"``: the intercept is one more coefficient of each task, with
the prior of the others, after inputs and targets were centred at the means of all rows; for tasks
that measure the same thing in different places.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator
from polytask.linear.layout import Layout, losses_of
from polytask.linear.moments import Block, Moments
from polytask.linear.penalised import names_of
from polytask.linear.solvers.task_evidence import SquaredStatistics, TaskEvidence

INTERCEPTS = ("own", "coupled")


class BayesianEstimator(TaskEstimator):
    """Linear models of several tasks whose prior is learned from them (abstract)."""

    loss: Any = "squared"
    task_weighting: Any = "examples"
    intercepts: Any
    tol: float
    max_iter: int
    _relations: dict[str, Relation] | None
    _shift: Floats

    def _check_common(self) -> None:
        super()._check_common()
        if self.intercepts not in INTERCEPTS:
            raise InputError(f'intercepts must be "own" or "coupled", got {self.intercepts!r}')

    def _lends(self) -> bool:
        return bool(self.intercepts == "coupled")

    @property
    def _coupled(self) -> bool:
        return bool(self.fit_intercept and self.intercepts == "coupled")

    @property
    def _own(self) -> bool:
        return bool(self.fit_intercept and self.intercepts == "own")

    def _fit(self, X: Floats, layout: Layout) -> None:
        for name, kind in zip(self.tasks_.tolist(), losses_of(self.loss, self.tasks_), strict=True):
            if kind not in ("squared", "logistic"):
                raise InputError(f'{type(self).__name__} has no loss="{kind}" (task {name!r}); use squared or logistic')
        self.solve(layout.blocks, X.shape[1])

    def solve(self, blocks: Sequence[Block], n_features: int) -> None:
        """Fit given rows of the tasks ``tasks_``, which is what :meth:`fit` does with its data."""
        logistic = self.logistic_
        rest = columns_of(blocks, logistic) if logistic.any() else []
        squared = columns_of(blocks, ~logistic) if logistic.any() else blocks
        moments = Moments.of_blocks(squared, len(logistic), n_features)
        shift, level = self._origin(moments, rest)
        moments = replace(moments, mean_x=moments.mean_x - shift, mean_y=moments.mean_y - level)
        evidence = TaskEvidence(
            self._statistics(moments),
            [self._centred(block, shift, level) for block in rest],
            logistic=logistic,
            own_intercepts=self._own,
        )
        self._relations, self._shift = None, shift
        W, own = self._learn(evidence)
        self.coef_ = np.ascontiguousarray(W[:, :n_features])
        intercept = W[:, n_features] if self._coupled else own
        self.intercept_ = np.asarray(intercept + level - self.coef_ @ shift)

    @abstractmethod
    def _learn(self, evidence: TaskEvidence) -> tuple[Floats, Floats]:
        """Return coefficients, with coupled intercepts last, and the tasks' own intercepts ``(T,)``."""

    @abstractmethod
    def _relate(self) -> dict[str, Relation]:
        """Return what was learned about the tasks."""

    @property
    def relations_(self) -> dict[str, Relation]:
        """What was learned about the tasks, by name; worked out when it is asked for."""
        check_is_fitted(self)
        if self._relations is None:
            self._relations = self._relate()
        return self._relations

    def _statistics(self, moments: Moments) -> SquaredStatistics:
        """Return what moments say about the coefficients, those of coupled intercepts last."""
        if self._coupled:
            moments = moments.with_constant()
        elif not self.fit_intercept:
            moments = moments.uncentred()
        return SquaredStatistics(moments, own_intercepts=self._own)

    def _origin(self, moments: Moments, rest: Sequence[Block]) -> tuple[Floats, Floats]:
        """Return the means of all rows ``(d,)`` and, if intercepts are coupled, of squared-loss targets ``(T,)``."""
        shift, level = np.zeros(moments.n_features), np.zeros(moments.n_tasks)
        if not self.fit_intercept:
            return shift, level
        sizes = np.bincount(moments.pattern, weights=moments.n, minlength=len(moments.weight))
        total = float(sizes.sum()) + sum(block.total * len(block.outputs) for block in rest)
        shift += sizes @ moments.mean_x
        for block in rest:
            shift += len(block.outputs) * (block.weights @ block.X)
        shift /= max(total, 1e-300)
        if self._coupled and moments.n.sum() > 0:
            level[~self.logistic_] = moments.n @ moments.mean_y / moments.n.sum()
        return shift, level

    def _centred(self, block: Block, shift: Floats, level: Floats) -> Block:
        """Return the block about the origin, with a column of ones if intercepts are coupled."""
        X = np.asarray(block.X, dtype=np.float64) - shift
        if self._coupled:
            X = np.column_stack([X, np.ones(len(X))])
        return Block(X, block.weights, block.Y - level[block.outputs], block.outputs)


def columns_of(blocks: Sequence[Block], chosen: NDArray[np.bool_]) -> list[Block]:
    """Return the columns of the blocks that belong to chosen tasks."""
    found = []
    for block in blocks:
        mine = chosen[block.outputs]
        if mine.all():
            found.append(block)
        elif mine.any():
            found.append(Block(block.X, block.weights, block.Y[:, mine], block.outputs[mine]))
    return found


def one_loss(estimator: TaskEstimator) -> bool:
    """Return whether all tasks have logistic loss; refuse tasks of different losses."""
    logistic = estimator.logistic_
    if logistic.any() and not logistic.all():
        raise InputError(
            f"{type(estimator).__name__} needs one loss for all tasks: coefficients of squared and of logistic loss "
            "have different units, so that tasks of both cannot be alike"
        )
    return bool(logistic.all())


def membership(shares: Floats, tasks: Any) -> dict[str, Relation]:
    """Return the clusters ``(K, T)`` from shares ``(T, K)``, how likely tasks are of one cluster, and their tree."""
    names = names_of(tasks)
    clusters = tuple(f"cluster {number + 1}" for number in range(shares.shape[1]))
    alike = np.clip(shares @ shares.T, 0.0, 1.0)
    np.fill_diagonal(alike, 1.0)
    found = {
        "clusters": Relation("loadings", shares.T, clusters, names, "Probability that a task belongs to a cluster."),
        "task similarity": Relation(
            "correlation", alike, names, names, "Probability that two tasks belong to one cluster."
        ),
    }
    if len(names) > 1:
        from scipy.cluster.hierarchy import average
        from scipy.spatial.distance import squareform

        tree = average(squareform(1.0 - alike, checks=False))
        found["task tree"] = Relation(
            "tree", tree, names, (), "Tasks joined by the probability that they belong to different clusters."
        )
    return found


def used_clusters(shares: Floats) -> tuple[Floats, Ints]:
    """Return the shares of clusters that hold a task, in the order of their first task, and each task's cluster."""
    best = shares.argmax(axis=1)
    order = list(dict.fromkeys(best.tolist()))
    place = {cluster: number for number, cluster in enumerate(order)}
    labels = np.array([place[cluster] for cluster in best.tolist()], dtype=np.int64)
    return np.ascontiguousarray(shares[:, order]), labels
