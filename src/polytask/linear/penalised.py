"""What estimators with a convex penalty on the coefficient matrix share: solving, certificates, warm starts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator, warn_unconverged
from polytask.linear.layout import Layout
from polytask.linear.parameters import count as count
from polytask.linear.parameters import not_negative as not_negative
from polytask.linear.parameters import positive as positive
from polytask.linear.paths import PathEstimator
from polytask.linear.penalties.spectral import Penalty
from polytask.linear.solvers.losses import TaskLosses
from polytask.linear.solvers.proximal import solve_proximal


class PenalisedEstimator(PathEstimator):
    """Minimises mean losses plus penalties on W, or on the parts W is the sum of (abstract)."""

    takes_sparse = True
    takes_multinomial = True

    tol: float
    max_iter: int
    warm_start: bool
    _parts: Floats
    _relations: dict[str, Relation] | None

    @abstractmethod
    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:
        """Check the parameters and return the penalty of each part."""

    def _describe(self) -> None:
        """Set what the method adds to coef_, from coef_ and the parts ``(K, T, d)`` in _parts."""

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

    def _fit(self, X: Floats, layout: Layout) -> None:
        T, d = len(layout.names), X.shape[1]
        self._penalties(T, d)  # refuses wrong parameters before anything is computed
        self.solve(self._losses(layout.blocks, T, d, fit_intercept=self.fit_intercept))

    def solve(self, losses: TaskLosses) -> None:
        """Fit given losses of the tasks ``tasks_``, which is what :meth:`fit` does with those of its data."""
        T, d = losses.n_tasks, losses.n_features
        penalties = self._penalties(T, d)
        start = getattr(self, "_parts", None) if self.warm_start else None
        if start is not None and start.shape != (len(penalties), T, d):
            start = None
        found = solve_proximal(losses, penalties, tol=float(self.tol), max_steps=int(self.max_iter), start=start)
        self._parts = found.parts
        self.coef_ = found.W
        self.intercept_ = found.intercept
        self.dual_gap_ = found.gap
        self.n_iter_ = found.steps
        self._relations = None
        self._describe()
        if found.gap > found.bound:
            warn_unconverged(type(self).__name__, found.gap, found.bound, "a duality gap of", int(self.max_iter))

    def strongest(self, losses: TaskLosses) -> float | None:  # noqa: ARG002 - what methods that have one need
        """Return the smallest ``alpha`` at which all coefficients are 0, given the losses; None: there is none."""
        return None

    def _alpha_max(self, X: Any, y: Any, tasks: Any, sample_weight: Any) -> float:
        X, layout = self._begin(X, y, tasks, sample_weight)
        return self._top(X, layout)

    def _top(self, X: Any, layout: Layout) -> float:
        losses = self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept)
        found = self.strongest(losses)
        return super()._top(X, layout) if found is None else found


def gradient_at_zero(losses: TaskLosses) -> Floats:
    """Return the gradient at W = 0, ``(T, d)``."""
    return losses.at(np.zeros((losses.n_tasks, losses.n_features))).gradient


def names_of(tasks: NDArray[Any]) -> tuple[str, ...]:
    """Return task labels as text."""
    return tuple(str(name) for name in tasks.tolist())


def feature_names(estimator: Any, n_features: int) -> tuple[str, ...]:
    """Return the column names of the fit, or x0, x1 and so on."""
    known = getattr(estimator, "feature_names_in_", None)
    return tuple(f"x{number}" for number in range(n_features)) if known is None else tuple(str(n) for n in known)


def features_in_use(estimator: TaskEstimator, W: Floats, about: str) -> Relation:
    """Return the coefficients ``W`` of the features that some task of a fitted model uses."""
    kept = np.flatnonzero(estimator.coef_.any(axis=0))
    names = feature_names(estimator, estimator.coef_.shape[1])
    rows = tuple(names[number] for number in kept)
    return Relation("coefficients", W[:, kept].T, rows, names_of(estimator.outputs_), about)


def root_covariance(W: Floats) -> Floats:
    """Return (W W^T)^(1/2) / trace, ``(T, T)``; I / T for W = 0."""
    U, s, _ = np.linalg.svd(W, full_matrices=False)
    if s[0] <= 0.0:
        return np.asarray(np.eye(len(W)) / len(W))
    matrix = (U * (s / s.sum())) @ U.T
    return np.asarray(0.5 * (matrix + matrix.T))


def correlation_of(covariance: Floats) -> Floats:
    """Return the correlation matrix; 0 with a variance of 0, 1 on the diagonal."""
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    kept = scale > 1e-12 * max(float(scale.max(initial=0.0)), 1e-300)
    safe = np.where(kept, scale, 1.0)
    matrix = np.where(kept[:, None] & kept, covariance / safe[:, None] / safe, 0.0)
    matrix = np.clip(matrix, -1.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    return np.asarray(matrix)


def task_relations(covariance: Floats, tasks: NDArray[Any], about: str) -> dict[str, Relation]:
    """Return the covariance of the tasks, its correlation, and the tree of tasks by 1 - correlation."""
    names = names_of(tasks)
    correlation = correlation_of(covariance)
    found = {
        "task covariance": Relation("covariance", covariance, names, names, about),
        "task correlation": Relation(
            "correlation", correlation, names, names, "The task covariance with every task's variance set to 1."
        ),
    }
    if len(names) > 1:
        from scipy.cluster.hierarchy import average
        from scipy.spatial.distance import squareform

        tree = average(squareform(1.0 - correlation, checks=False))
        found["task tree"] = Relation(
            "tree", tree, names, (), "Tasks joined by average linkage of 1 - correlation; lower joins are closer."
        )
    return found
